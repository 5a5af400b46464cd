"""What several checks need to know about a recipe, found once."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from data_pipeline.classes.rewards import RewardFacts
from data_pipeline.classes.tagging import Tagger, class_table
from data_pipeline.conversation import TaggedConversation
from data_pipeline.errors import RowError, UserError, duplicate_id
from data_pipeline.hub_names import is_hub_id
from data_pipeline.ledger import Ledger
from data_pipeline.look.raw import sample_rows, token_lengths, under_inference_condition
from data_pipeline.prepared.dataset import Manifest, PreparedSplit
from data_pipeline.prompt.length_rule import LengthRule
from data_pipeline.prompt.templates import TEMPLATES
from data_pipeline.prompt.tokenization import TemplateTokenizer, TokenizerSpec, load_tokenizer_spec
from data_pipeline.prompt.tokenizer_files import find_tokenizer_files
from data_pipeline.prompt.turns import TurnReader
from data_pipeline.read.formats import parse_row
from data_pipeline.read.openchat_parquet import read_tokenized, tokenized_chunks
from data_pipeline.read.sources import is_dataset, source_files
from data_pipeline.settings import SourceSettings
from ochat_train.hub import models
from ochat_train.model.config import load_base_config, model_without_weights, num_parameters
from ochat_train.planning.memory import MemoryPlan
from ochat_train.planning.report import memory_choice
from ochat_train.planning.steps import training_plan
from ochat_train.recipe.preparation import check_prepared
from ochat_train.recipe.sections import Recipe

T = TypeVar("T")
_SAMPLED_ROWS = 5_000
_ANY_REWARD = 1e6  # decides weights, and only whether a row can be used is asked


@dataclass(frozen=True, kw_only=True)
class SourceSample:
    """Some rows of a source: how many there are, what became of those read, and how many each class has.

    kept: those that can be used; of a source that OpenChat has tokenized, their lengths in tokens instead.
    """

    source: SourceSettings
    num_rows: int
    ledger: Ledger
    classes: Counter[str]
    kept: Sequence[TaggedConversation] | np.ndarray


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
        return self._once("tokenizer", self._find_tokenizer)

    def _find_tokenizer(self) -> TokenizerSpec:
        model = self.recipe.model
        if is_hub_id(model.tokenizer_source):
            self.hub_model(model.tokenizer_source)
        files = find_tokenizer_files(model.tokenizer_source, revision=model.revision)
        return load_tokenizer_spec(files, TEMPLATES[model.template])

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
            return int(self.config.vocab_size)

    @property
    def model(self) -> Any:
        """The model without weights."""
        return self._once("model", lambda: model_without_weights(self.config))

    @property
    def num_parameters(self) -> int:
        """Parameters, rows of added tokens included."""
        return num_parameters(self.model, self.vocab_size)

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
    def num_steps(self) -> int | None:
        """Optimizer steps of the run; None without a prepared dataset of this recipe, which decides them."""
        try:
            if self.prepared is None:
                return self.recipe.train.max_steps
        except UserError:
            return self.recipe.train.max_steps
        split = PreparedSplit(Path(self.recipe.data.prepared_dir), "train")
        return self._once("steps", lambda: training_plan(self.recipe, split).num_steps)

    def samples(self) -> Sequence[tuple[SourceSettings, SourceSample | UserError]]:
        """What was seen in each source, or why it could not be read. Datasets on the Hub are left out: they cannot be
        downloaded in parts.
        """
        return self._once(
            "samples", lambda: [(source, self._sample(number)) for number, source in self._readable_sources()]
        )

    def _readable_sources(self) -> list[tuple[int, SourceSettings]]:
        return [(n, source) for n, source in enumerate(self.recipe.data.sources) if not source.is_on_hub]

    def _sample(self, number: int) -> SourceSample | UserError:
        data = self.recipe.data
        source = data.sources[number]
        scored_by = data.classes_from.field if data.classes_from else None
        tagger = Tagger(data, RewardFacts(largest=_ANY_REWARD, baselines={}))
        if source.is_tokenized:
            return self._sample_tokens(source, where=f"data.sources.{number}")
        template = TEMPLATES[self.recipe.model.template]
        ledger, classes, seen_ids = Ledger(), Counter[str](), set()
        kept: list[TaggedConversation] = []
        try:
            sample = sample_rows(source, where=f"data.sources.{number}", most_rows=_SAMPLED_ROWS)
        except UserError as error:
            return error
        for place, row in sample.rows:
            ledger.num_read += 1
            try:
                conversation = parse_row(row, place=place, source=source, scored_by=scored_by)
                if conversation.id in seen_ids:
                    raise duplicate_id(conversation.id)
                seen_ids.add(conversation.id)
                if scored_by is None:
                    kept.append(tagger(conversation, class_name=source.class_name))
                    classes[kept[-1].class_name] += 1
                else:  # all rows together decide the classes
                    kept.append(under_inference_condition(conversation, template))
                ledger.num_kept += 1
            except RowError as error:
                ledger.drop(error.reason, place, str(error), bad=True)
        return SourceSample(source=source, num_rows=sample.num_rows, ledger=ledger, classes=classes, kept=kept)

    def _sample_tokens(self, source: SourceSettings, *, where: str) -> SourceSample | UserError:
        """A sample of what OpenChat has tokenized, read as `ochat prepare` reads it."""
        data, template = self.recipe.data, TEMPLATES[self.recipe.model.template]
        ledger, classes, num_rows, lengths = Ledger(), Counter[str](), 0, []
        try:
            table = class_table(data, RewardFacts(largest=_ANY_REWARD, baselines={}))
            reader = TurnReader(TemplateTokenizer(self.tokenizer), template, table, bos_token=self.tokenizer.bos_token)
            for chunk in tokenized_chunks(source, template.name, where=where):
                num_rows += chunk.batch.num_rows
                if ledger.num_read >= _SAMPLED_ROWS:
                    continue  # the others are only counted
                for place, tokens in read_tokenized(chunk):
                    ledger.num_read += 1
                    try:
                        if isinstance(tokens, RowError):
                            raise tokens
                        classes[reader(tokens, place=place, class_name=source.class_name).class_name] += 1
                        ledger.num_kept += 1
                        lengths.append(len(tokens.input_ids))
                    except RowError as error:
                        ledger.drop(error.reason, place, str(error), bad=True)
        except UserError as error:
            return error
        return SourceSample(
            source=source,
            num_rows=max(num_rows, ledger.num_read),
            ledger=ledger,
            classes=classes,
            kept=np.array(lengths, dtype=np.int64),
        )

    def token_lengths(self, sample: SourceSample) -> np.ndarray:
        """int64: how many tokens some of the sampled conversations have, as the limit counts them.

        Raises UserError where there is no tokenizer.
        """
        model = self.recipe.model
        template = TEMPLATES[model.template]
        rule = LengthRule.of(template, TemplateTokenizer(self.tokenizer), max_length_tokens=model.max_length_tokens)
        kept = sample.kept
        lengths = kept if isinstance(kept, np.ndarray) else token_lengths(kept, template, self.tokenizer)
        return lengths - rule.num_tail_tokens

    def local_source_bytes(self) -> int:
        """Bytes of all source files on this machine; a missing one is a problem of `check_sources`."""
        total = 0
        for number, source in self._readable_sources():
            if is_dataset(source):
                continue
            with contextlib.suppress(UserError):
                total += sum(file.stat().st_size for file in source_files(source, where=f"data.sources.{number}"))
        return total
