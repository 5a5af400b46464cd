"""What this machine knows of a base model without asking the network: its configuration and its tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from data_pipeline.errors import UserError
from data_pipeline.hub_cache import cached_file
from data_pipeline.hub_names import is_hub_id
from data_pipeline.json_files import read_json_object
from data_pipeline.prompt.templates import TEMPLATES
from data_pipeline.prompt.tokenizer_files import TOKENIZER_FILES
from data_pipeline.text_rules import shown
from ochat_train.model.families import Family, family_by_name, family_of

T = TypeVar("T")
CONFIG_FILE = "config.json"
_USUAL_TEMPLATE = "chatml"
# Formats that a tokenizer can be told to be made for, by control tokens that no other one has; the first counts.
_TOLD_BY_TOKENS = (
    "phi-4",
    "chatml",
    "openchat_3.6",
    "openchat_3.5",
    "openchat_3.2",
    "gemma-3",
    "gpt-oss",
    "glm-4",
    "phi-3",
)
_WIDTH_KEYS = ("hidden_size", "n_embd", "d_model")  # the last two as in GPT-2 and MPT


@dataclass(frozen=True, kw_only=True)
class Base:
    """A base model. Everything but the name is None or empty if its files are not on this machine.

    config: the values of its `config.json`.

    family: by its config or, without one, by its name; None where it belongs to none. hidden_size: its width.
    max_positions: the longest text it supports, in tokens. special_tokens: of its tokenizer.
    """

    name: str
    family: Family | None
    model_type: str | None
    vocab_size: int | None
    hidden_size: int | None
    max_positions: int | None
    tokenizer_files: Mapping[str, Path]
    special_tokens: frozenset[str]
    config: Mapping[str, Any] | None = None

    @property
    def template(self) -> str:
        """The prompt format of OpenChat's models on this family. For others a format whose control tokens the tokenizer
        has, and `chatml` where it has those of none.
        """
        if self.family is not None and self.family.template is not None:
            return self.family.template
        fitting = (n for n in _TOLD_BY_TOKENS if self.special_tokens.issuperset(TEMPLATES[n].control_tokens))
        return next(fitting, _USUAL_TEMPLATE)

    @property
    def has_control_tokens(self) -> bool:
        """Whether the tokenizer already has the control tokens of `template`."""
        return self.special_tokens.issuperset(TEMPLATES[self.template].control_tokens)


def find_base(name: str) -> Base:
    """Look for a base in a folder or in the Hub cache. Raises UserError for neither a folder nor a Hub id."""
    files = _local_files(name)
    config = read_json_object(files[CONFIG_FILE]) if CONFIG_FILE in files else {}
    text = config.get("text_config")  # of a base with a vision part
    facts = {**config, **text} if isinstance(text, dict) else config
    model_type, vocab_size = _known(config, "model_type", str), _known(facts, "vocab_size", int)
    tokenizer_files = {file: path for file, path in files.items() if file in TOKENIZER_FILES}
    return Base(
        name=name,
        family=family_by_name(name) if model_type is None else family_of(model_type, vocab_size),
        model_type=model_type,
        vocab_size=vocab_size,
        hidden_size=next((facts[key] for key in _WIDTH_KEYS if isinstance(facts.get(key), int)), None),
        max_positions=_known(facts, "max_position_embeddings", int),
        tokenizer_files=tokenizer_files,
        special_tokens=_special_tokens(tokenizer_files.get("tokenizer.json")),
        config=config or None,
    )


def _known(config: Mapping[str, Any], key: str, kind: type[T]) -> T | None:
    """A value of `config.json`, None where there is none. Raises UserError for one of another type, or not above 0."""
    value = config.get(key)
    is_good = isinstance(value, kind) and not isinstance(value, bool) and (not isinstance(value, int) or value > 0)
    if value is None or is_good:
        return value
    raise UserError("--base", f"{CONFIG_FILE} is damaged: its {key} is {shown(value)}", "get the base again")


def _special_tokens(file: Path | None) -> frozenset[str]:
    if file is None:
        return frozenset()
    try:
        added = read_json_object(file)["added_tokens"]
        return frozenset(token["content"] for token in added if token["special"])
    except (UserError, KeyError, TypeError):  # preparation names what is wrong with it
        return frozenset()


def _local_files(name: str) -> dict[str, Path]:
    wanted = (CONFIG_FILE, *TOKENIZER_FILES)
    folder = Path(name)
    if folder.is_dir():
        if not (folder / CONFIG_FILE).is_file():
            remedy = "name a Hugging Face model folder or a Hub id"
            raise UserError(f"--base {name}", f"the folder holds no {CONFIG_FILE}", remedy)
        return {file: folder / file for file in wanted if (folder / file).is_file()}
    if not is_hub_id(name):
        raise UserError(f"--base {name}", "no such folder, and not a Hub id", "a Hub id is ORG/NAME")
    from huggingface_hub.errors import HFValidationError

    try:
        cached = {file: cached_file(name, file) for file in wanted}
    except HFValidationError as error:
        raise UserError(f"--base {name}", f"not a Hub id: {error}") from None
    return {file: path for file, path in cached.items() if path is not None}
