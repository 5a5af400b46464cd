"""A folder of PEFT on its base, ready to answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from data_pipeline.errors import UserError
from data_pipeline.hub_names import is_hub_id
from data_pipeline.text_rules import some_names
from ochat_train.adapter.base_hash import base_sha256
from ochat_train.adapter.folder import base_of, load_adapter, num_rows_needed
from ochat_train.adapter.quantize import quantise_base
from ochat_train.export.layout import EXPORT_MARK, read_mark
from ochat_train.model.base_class import auto_class
from ochat_train.model.weights.token_rows import add_token_rows
from ochat_train.recipe.sections.model import ModelSettings
from ochat_train.system.pretrained import load_config, load_tokenizer, reason_of


def load_with_base(folder: Path, *, base: str | None, device: torch.device) -> tuple[Any, Path]:
    """The model of an adapter on its base, on `device`, and the folder of its tokenizer.

    base: a folder or a model of the Hub, None for the one that the adapter names. An adapter that `ochat` trained on a
    quantised base gets one. Raises UserError where base or adapter is not there or not whole.
    """
    import transformers

    place, revision = base_place(folder, base)
    if not Path(place).is_dir() and not is_hub_id(place):
        raise UserError(folder, f"its base {place} is not there", "name it with `--base`")
    model = _load_base(place, revision)
    _check_base(folder, model, place, revision)
    tokenizer_dir = tokenizer_dir_of(folder, place)
    add_token_rows(model, vocab_size=max(num_rows_needed(folder), len(load_tokenizer(tokenizer_dir))))
    if (folder / "generation_config.json").is_file():
        model.generation_config = transformers.GenerationConfig.from_pretrained(folder)
    if _was_quantised(folder):
        quantise_base(model, device=device, dtype=model.get_input_embeddings().weight.dtype)
    return load_adapter(model.to(device), folder), tokenizer_dir


def base_place(folder: Path, base: str | None) -> tuple[str, str | None]:
    """Where the base of an adapter is, and which revision. base: None for the one that it names; UserError for none."""
    named, revision = base_of(folder)
    if not base and named is None:
        raise UserError(folder, "the adapter does not name its base", "name it with `--base`")
    return (base, None) if base else (str(named), revision)


def _load_base(place: str, revision: str | None) -> Any:
    config = load_config(place, revision=revision, place=place)
    try:
        model, found = auto_class(config).from_pretrained(
            place,
            revision=revision,
            config=config,
            dtype="auto",
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except Exception as error:  # any kind: no such model, damaged files, sizes that do not fit
        problem = f"the base cannot be loaded: {reason_of(error)}"
        raise UserError(place, problem, "name another one with `--base`") from None
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if names := sorted(map(str, found.get(kind) or ())):
            problem = f"{len(names)} weights of the base are {kind.removesuffix('_keys')}: {some_names(names)}"
            raise UserError(place, problem, "fetch the base again, or name another one with `--base`")
    return model.eval()


def _check_base(folder: Path, model: Any, place: str, revision: str | None) -> None:
    """Raise UserError for a base with other weights than those that `ochat` trained the adapter on. An adapter of
    another program does not say which they were.
    """
    expected = read_mark(folder).get("adapter", {}).get("base_sha256")
    if expected is None:
        return
    where = ModelSettings(path=place, revision=revision, template="chatml", max_length_tokens=1)
    if base_sha256(where, model) != expected:
        problem = f"its weights are not those that the adapter was trained on (sha256 in {folder / EXPORT_MARK})"
        raise UserError(place, problem, "name the right base with `--base`")


def tokenizer_dir_of(folder: Path, base: str) -> Path:
    """The folder with the tokenizer: that of the adapter, or of a base on this machine."""
    for place in (folder, Path(base)):
        if (place / "tokenizer_config.json").is_file():
            return place
    raise UserError(folder, "has no tokenizer", "copy tokenizer.json and tokenizer_config.json of its base into it")


def _was_quantised(folder: Path) -> bool:
    """Whether an export says that its adapter was trained on a quantised base."""
    try:
        return bool(read_mark(folder)["recipe"]["adapter"]["type"] == "qlora")
    except (KeyError, TypeError):
        return False
