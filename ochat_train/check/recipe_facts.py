"""What several checks need to know about a recipe, found once."""

from __future__ import annotations

import contextlib
import functools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from data_pipeline.classes.rewards import RewardFacts, needs_scores
from data_pipeline.classes.tagging import ClassTable, Tagger, class_table
from data_pipeline.conversation import Conversation, TaggedConversation
from data_pipeline.errors import UserError
from data_pipeline.hub_names import is_hub_id
from data_pipeline.ledger import Tally
from data_pipeline.look.raw import token_lengths, under_inference_condition
from data_pipeline.prepared.dataset import Manifest, PreparedSplit
from data_pipeline.prompt.base_template.template import TOKENS_OF_OTHER_TEMPLATE, BaseTemplate
from data_pipeline.prompt.length_rule import LengthRule
from data_pipeline.prompt.prompt_format import AnyTemplate
from data_pipeline.prompt.templates import TEMPLATES
from data_pipeline.prompt.tokenization import TemplateTokenizer, TokenizerSpec
from data_pipeline.prompt.turns import TurnReader
from data_pipeline.read.chunks import AnyChunk
from data_pipeline.read.conversations import BadRow, read_conversations, with_unique_ids
from data_pipeline.read.layout import resolved_source
from data_pipeline.read.sample import sample_source
from data_pipeline.read.sources import is_dataset, source_files
from data_pipeline.settings.sources import SourceSettings
from ochat_train.hub import models
from ochat_train.model.attention.kernels import KERNELS
from ochat_train.model.base_class import text_config
from ochat_train.model.config import load_base_config, model_without_weights, num_parameters
from ochat_train.model.proof.base import ProvenBase, prove_base
from ochat_train.planning.adapters import adapter_shape
from ochat_train.planning.memory import MemoryPlan
from ochat_train.planning.report import memory_choice
from ochat_train.planning.steps import training_plan
from ochat_train.recipe.preparation import check_prepared
from ochat_train.recipe.prompts import Prompts, load_prompts
from ochat_train.recipe.recipe import Recipe

T = TypeVar("T")
_SAMPLED_ROWS = 5_000
ALL_ROWS_BYTES = 20_000_000  # a source of at most so many is looked at whole, which takes seconds
_ALL_ROWS = 1 << 62
_ANY_REWARD = 1e6  # any number will do: it decides weights, and a check only asks whether a row can be used


@dataclass(frozen=True, kw_only=True)
class SourceSample:
    """Some rows of a source. num_rows: of the whole source. ledger: of the rows read; kept: those that can be used.
    classes: how many of them each class has. unread: `place: message` of each field that nothing reads.
    """

    source: SourceSettings
    num_rows: int
    ledger: Tally
    classes: Counter[str]
    kept: Sequence[TaggedConversation]
    unread: Sequence[str] = ()


@dataclass(kw_only=True)
class RecipeFacts:
    """Facts about a recipe. One that cannot be found raises the same UserError each time."""

    recipe: Recipe
    num_gpus: int
    gpu_memory_gib: float
    _known: dict[str, Any] = field(default_factory=dict)

    def _once(self, name: str, find: Callable[[], T]) -> T:
        if name not in self._known:
            try:
                self._known[name] = find()
            except UserError as error:
                self._known[name] = error
        fact = self._known[name]
        if isinstance(fact, UserError):
            raise fact
        return fact  # type: ignore[no-any-return]

    def hub_model(self, name: str) -> models.Repository:
        """A base or tokenizer on the Hub. Raises UserError if neither the Hub nor the cache has it."""
        revision = self.recipe.model.revision
        return self._once(
            f"hub {name}", lambda: models.find_model(name, revision, with_weights=name == self.recipe.model.path)
        )

    @property
    def tokenizer(self) -> TokenizerSpec:
        """The tokenizer, made ready for the template."""
        return self.prompts.tokenizer

    @property
    def template(self) -> AnyTemplate:
        """The prompt format. Raises UserError where it is the tokenizer's own and cannot be used."""
        return TEMPLATES.get(self.recipe.model.template) or self.prompts.template

    @property
    def prompts(self) -> Prompts:
        """Template and tokenizer."""
        return self._once("prompts", self._find_prompts)

    def _find_prompts(self) -> Prompts:
        model = self.recipe.model
        if is_hub_id(model.tokenizer_source):
            self.hub_model(model.tokenizer_source)
        return load_prompts(model)

    @property
    def config(self) -> Any:
        """The base's `transformers` config."""
        return self._once("config", self._find_config)

    def _find_config(self) -> Any:
        model = self.recipe.model
        if model.path is not None and is_hub_id(model.path):
            self.hub_model(model.path)
        return load_base_config(model, 0 if model.path is not None else self.tokenizer.vocab_size)

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding: by the tokenizer, or by the base where there is no tokenizer."""
        try:
            return self.tokenizer.vocab_size
        except UserError:
            return int(text_config(self.config).vocab_size)

    @property
    def model(self) -> Any:
        """The model without weights."""
        return self._once("model", lambda: model_without_weights(self.config))

    @property
    def proven(self) -> ProvenBase:
        """The proof of the base on the device that a run on this machine would use.

        Where that is the CPU, a kernel that only a GPU has is left to the GPU host.
        """
        return self._once("proven", self._prove)

    def _prove(self) -> ProvenBase:
        has_gpu, model = torch.cuda.is_available(), self.recipe.model
        if not has_gpu and model.attention != "auto" and KERNELS[model.attention].needs_gpu:
            model = model.model_copy(update={"attention": "auto"})
        device = torch.device("cuda", 0) if has_gpu else torch.device("cpu")
        return prove_base(self.config, model, device=device)

    @property
    def num_parameters(self) -> int:
        """Parameters, rows of added tokens included."""
        return num_parameters(self.model, self.vocab_size)

    @property
    def num_trained(self) -> int:
        """Parameters that the optimizer changes: those of the adapter, if there is one."""
        shape = adapter_shape(self.recipe.adapter, self.model, vocab_size=self.vocab_size)
        return self.num_parameters if shape is None else shape.num_trained

    @property
    def memory(self) -> MemoryPlan:
        """What a run on such GPUs would choose. Raises UserError for packs that the GPUs cannot share evenly."""
        return self._once("memory", self._find_memory)

    def _find_memory(self) -> MemoryPlan:
        return memory_choice(
            self.recipe,
            self.model,
            vocab_size=self.vocab_size,
            num_gpus=self.num_gpus,
            gpu_memory_gib=self.gpu_memory_gib,
        ).chosen

    @property
    def prepared(self) -> Manifest | None:
        """The manifest of the prepared dataset, None if there is none. Raises UserError for one of another recipe."""
        return self._once("prepared", self._find_prepared)

    def _find_prepared(self) -> Manifest | None:
        if Manifest.load(Path(self.recipe.data.prepared_dir)) is None:
            return None
        return check_prepared(self.recipe)

    @property
    def usable_data(self) -> Manifest | None:
        """The manifest of the prepared dataset, None where there is none that was made from this recipe."""
        try:
            return self.prepared
        except UserError:
            return None

    @property
    def num_steps(self) -> int | None:
        """Optimizer steps of the run; None without a prepared dataset of this recipe, which decides them."""
        if self.usable_data is None:
            return self.recipe.train.max_steps
        split = PreparedSplit(Path(self.recipe.data.prepared_dir), "train")
        return self._once("steps", lambda: training_plan(self.recipe, split).num_steps)

    def samples(self) -> Sequence[tuple[SourceSettings, SourceSample | UserError]]:
        """What was seen in each source, or why nothing could be seen. Datasets on the Hub are left out: looking at one
        would download it whole.
        """
        return self._once(
            "samples", lambda: [(source, self._sample(number)) for number, source in self._readable_sources()]
        )

    def _readable_sources(self) -> list[tuple[int, SourceSettings]]:
        return [(n, source) for n, source in enumerate(self.recipe.data.sources) if not source.is_on_hub]

    def _sample(self, number: int) -> SourceSample | UserError:
        """Some rows of a source, read as `ochat prepare` reads them."""
        source = self.recipe.data.sources[number]
        tally, classes = Tally(), Counter[str]()
        kept: list[TaggedConversation] = []
        unread: dict[str, str] = {}
        try:
            if source.format == "auto":
                source = resolved_source(source, data=self.recipe.data, where=f"data.sources.{number}")
            read = self._reader(source)
            sample = sample_source(
                source,
                template=self.recipe.model.template,
                where=f"data.sources.{number}",
                most_rows=self._most_rows(number),
            )
        except UserError as error:
            return error
        for item in with_unique_ids(item for chunk in sample.chunks for item in read(chunk)):
            tally.num_read += 1
            if isinstance(item, BadRow):
                tally.drop(item.reason, item.place, item.message, bad=True)
                if item.unread:
                    unread.setdefault(item.unread, f"{item.place}: {item.message}")
                continue
            tally.num_kept += 1
            kept.append(item)
            if self.recipe.data.scored_by is None:
                classes[item.class_name] += 1
        num_rows = max(sample.num_rows, tally.num_read)  # a row of tokens may hold several conversations
        return SourceSample(
            source=source, num_rows=num_rows, ledger=tally, classes=classes, kept=kept, unread=tuple(unread.values())
        )

    def _most_rows(self, number: int) -> int:
        """How many rows of a source are looked at: all of a small one, some of a large one."""
        source = self.recipe.data.sources[number]
        if is_dataset(source):
            return _SAMPLED_ROWS
        num_bytes = sum(file.stat().st_size for file in source_files(source, where=f"data.sources.{number}"))
        return _SAMPLED_ROWS if num_bytes > ALL_ROWS_BYTES else _ALL_ROWS

    def _reader(self, source: SourceSettings) -> Callable[[AnyChunk], Iterator[TaggedConversation | BadRow]]:
        """Reads chunks of a source. Raises UserError where its rows hold tokens and there is no tokenizer."""
        data, template = self.recipe.data, self.template
        rewards = RewardFacts(largest=_ANY_REWARD, baselines={})

        def without_class(conversation: Conversation, *, class_name: str | None) -> TaggedConversation:
            return under_inference_condition(conversation, template)  # all rows together decide the classes

        tag = Tagger(data, rewards) if data.scored_by is None else without_class
        read_turns = None
        if source.is_tokenized:
            if isinstance(template, BaseTemplate):
                raise UserError("model.template", *TOKENS_OF_OTHER_TEMPLATE)
            tokenizer = TemplateTokenizer(self.tokenizer)
            table = self._classes_of_tokens()
            read_turns = TurnReader(tokenizer, template, table, bos_token=self.tokenizer.bos_token)
        return functools.partial(
            read_conversations,
            source=source,
            scored_by=data.scored_by,
            tag=tag,
            read_turns=read_turns,
            ignored=data.ignore_fields,
        )

    def _classes_of_tokens(self) -> ClassTable:
        """The class table that rows of tokens are compared with; without weights where those need all rewards."""
        data = self.recipe.data
        table = class_table(data, RewardFacts(baselines={}))
        if needs_scores(data):
            return {name: replace(spec, weight=None) for name, spec in table.items()}
        return table

    def token_lengths(self, sample: SourceSample) -> np.ndarray:
        """int64: how many tokens some of the sampled conversations have, as the limit counts them.

        Raises UserError where there is no tokenizer.
        """
        model = self.recipe.model
        template = self.template
        rule = LengthRule.of(template, TemplateTokenizer(self.tokenizer), max_length_tokens=model.max_length_tokens)
        return token_lengths(sample.kept, template, self.tokenizer) - rule.num_tail_tokens

    def local_source_bytes(self) -> int:
        """Bytes of all source files on this machine; a missing one is a problem of `check_sources`."""
        total = 0
        for number, source in self._readable_sources():
            if is_dataset(source):
                continue
            with contextlib.suppress(UserError):
                total += sum(file.stat().st_size for file in source_files(source, where=f"data.sources.{number}"))
        return total
