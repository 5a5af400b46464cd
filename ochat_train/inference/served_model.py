"""What serving needs to know of an export: names, conditions, prompts, lengths and where answers end."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline.errors import UserError
from data_pipeline.json_files import read_json_object
from ochat_train.adapter.folder import is_adapter
from ochat_train.export.layout import EXPORT_MARK, answerable_conditions, read_mark, trained_conditions
from ochat_train.inference.adapted import base_place, tokenizer_dir_of
from ochat_train.model.base_class import text_config
from ochat_train.runs.folder import RECIPE_FILE
from ochat_train.system.pretrained import answer_prompt_ids, load_config, load_tokenizer

GENERATION_CONFIG = "generation_config.json"
_AGAIN = "export the run again"
# How configurations name the longest sequence that a model was made for.
_LENGTH_NAMES = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "seq_length")
_MOST_TOKENS = 10**7  # a tokenizer without a limit has a huge number


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """An export as serving, chat and evaluation see it. The model itself is not loaded.

    folder: of the export: a whole model, or an adapter. name: what clients call it. base: of an adapter, a folder or a
    model of the Hub, None for a whole model. tokenizer: with the chat template. conditions: those it was trained under,
    in the order of its classes, each once; empty for a folder that `ochat` did not write. default_condition: what its
    template takes where none is named. context_tokens: of prompt and answer together. stop_ids: tokens that end an
    answer, the end of turn first.
    """

    folder: Path
    name: str
    base: str | None
    tokenizer: Any
    conditions: tuple[str, ...]
    default_condition: str | None
    context_tokens: int
    stop_ids: tuple[int, ...]

    @property
    def answerable_conditions(self) -> tuple[str, ...]:
        """`conditions`, and "" where the condition was left out of some rows in training."""
        return answerable_conditions(read_mark(self.folder))

    def prompt_ids(self, messages: Sequence[Mapping[str, Any]], *, condition: str | None) -> list[int]:
        """Ids of the prompt of an answer, the same as in training. condition: None for the export's own.

        Raises UserError where the chat template refuses the messages, or would leave a system message out.
        """
        return answer_prompt_ids(self.tokenizer, messages, condition)


def load_served_model(
    folder: Path, *, name: str | None = None, base: str | None = None, context_tokens: int | None = None
) -> ServedModel:
    """Read what an export says of itself.

    name: None for the recipe's name. base: of an adapter, None for the one that it names. context_tokens: None for as
    many as the model was made for. Raises UserError for a folder that is not an export or has no chat template.
    """
    folder = export_folder(folder)
    if is_adapter(folder):
        place, revision = base_place(folder, base)
        tokenizer_dir = tokenizer_dir_of(folder, place)
        config = load_config(place, revision=revision, place=place)
    else:
        refuse_base_of_model(folder, base)
        place, tokenizer_dir = None, folder
        config = load_config(folder, revision=None, place=str(folder))
    tokenizer = load_tokenizer(tokenizer_dir)
    check_chat_template(tokenizer, folder)
    mark = read_mark(folder)
    return ServedModel(
        folder=folder,
        name=name or _name(mark, folder),
        base=place,
        tokenizer=tokenizer,
        conditions=trained_conditions(mark),
        default_condition=mark.get("inference_condition") if mark else None,
        context_tokens=_context_tokens(folder, config, tokenizer, context_tokens),
        stop_ids=stop_ids_of(folder, tokenizer),
    )


def export_folder(target: Path) -> Path:
    """The export that a target names: the folder itself, or `export` of a run, where docs and recipes put it.

    Raises UserError for a folder with neither a model nor an adapter, or with a damaged ochat.json: its conditions, and
    what its adapter belongs to, would be missing silently.
    """
    folder = target
    if (target / RECIPE_FILE).is_file() and not (target / "config.json").is_file():
        folder = target / "export"
        if not folder.is_dir():
            command = f"ochat export {target} --out {folder}"
            raise UserError(target, "is a run, and an export of it is needed", f"make one with `{command}`")
    if not is_adapter(folder) and not (folder / "config.json").is_file():
        remedy = "name a folder that `ochat export RUN --out FOLDER` wrote"
        why = "config.json is missing" if folder.is_dir() else "there is no such folder"
        raise UserError(folder, f"not an exported model ({why})", remedy)
    if os.path.lexists(folder / EXPORT_MARK):
        read_json_object(folder / EXPORT_MARK, remedy=_AGAIN)
    return folder


def refuse_base_of_model(folder: Path, base: str | None) -> None:
    """Raise UserError for a base that is named for a whole model."""
    if base is not None:
        raise UserError(f"--base {base}", f"{folder} holds a whole model, and no adapter", "leave it out")


def check_chat_template(tokenizer: Any, folder: Path) -> None:
    """Raise UserError for a tokenizer without one: nothing else says what a prompt looks like."""
    if not tokenizer.chat_template:
        problem = "has no chat template, which makes the prompts (chat_template.jinja)"
        raise UserError(folder, problem, "name a folder of `ochat export`, or add the template of this model")


def stop_ids_of(folder: Path, tokenizer: Any) -> tuple[int, ...]:
    """Tokens that end an answer: the tokenizer's end of turn, and those of generation_config.json.

    Raises UserError where there are none: answers would end at their longest length only.
    """
    path = folder / GENERATION_CONFIG
    value = read_json_object(path, remedy=_AGAIN).get("eos_token_id") if os.path.lexists(path) else None
    named = [] if value is None else value if isinstance(value, list) else [value]
    if wrong := [token for token in named if not isinstance(token, int) or isinstance(token, bool)]:
        raise UserError(path, f"`eos_token_id` is no id of a token: {wrong[0]!r}", _AGAIN)
    found = tuple(dict.fromkeys(token for token in (tokenizer.eos_token_id, *named) if isinstance(token, int)))
    if not found:
        problem = "neither its tokenizer nor generation_config.json names a token that ends an answer"
        raise UserError(folder, problem, "name it as `eos_token` in its tokenizer_config.json")
    return found


def _name(mark: Mapping[str, Any], folder: Path) -> str:
    recipe = mark.get("recipe")
    name = recipe.get("name") if isinstance(recipe, dict) else None
    return name if isinstance(name, str) and name else folder.resolve().name


def tokens_made_for(config: Any, tokenizer: Any) -> int | None:
    """How many tokens of prompt and answer a model was made for; None where neither it nor its tokenizer says."""
    lengths = [getattr(text_config(config), name, None) for name in _LENGTH_NAMES]
    made_for = next((length for length in lengths if isinstance(length, int) and length > 0), None)
    if made_for is None and 0 < tokenizer.model_max_length < _MOST_TOKENS:
        made_for = int(tokenizer.model_max_length)
    return made_for


def _context_tokens(folder: Path, config: Any, tokenizer: Any, wanted: int | None) -> int:
    """How many tokens fit, at most what the model was made for."""
    made_for = tokens_made_for(config, tokenizer)
    if wanted is None and made_for is None:
        raise UserError(folder, "does not say how many tokens it was made for", "say it with `--max-model-len`")
    if wanted is not None and made_for is not None and wanted > made_for:
        raise UserError(f"--max-model-len {wanted}", f"{folder} was made for {made_for} tokens", f"use {made_for}")
    return wanted or made_for or 0
