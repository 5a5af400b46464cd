"""Configurations and tokenizers of `transformers`, loaded from folders that may hold anything.

A model repository can bring Python code of its own: `auto_map` in `config.json` or `tokenizer_config.json` names its
files, and an attention or experts implementation may name a repository of kernels. That code is never used here. Every
call of `transformers` says `trust_remote_code=False`: without it, `transformers` asks on a terminal whether it may run
the code. A test reads the whole source for calls that do not say it.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_pipeline.errors import UserError
from data_pipeline.hub_cache import offline_without_network
from data_pipeline.json_files import read_json_object
from data_pipeline.prompt.tokenizer_files import RUN_REMEDY, is_run_folder
from data_pipeline.text_rules import shown

AUTO_MAP = "auto_map"
# What a configuration may name that makes `transformers` load code: kernels of the Hub are named like `org/kernel`.
_IMPLEMENTATIONS = ("attn_implementation", "experts_implementation")
_TOKENIZER_LOGGER = "transformers.tokenization_utils_base"
_LENGTH_WARNING = "sequence length is longer than the specified maximum"
_MOST_CHARACTERS = 300  # of an error of another library
PROBE = "qzxvjk"  # a text that no template holds
_FOLDER_REMEDY = "make the folder again; `ochat prepare`, `ochat train` and `ochat export` write such folders"
_CONFIG_REMEDY = "fetch the model again, or restore that file"
_ENTRY_REMEDY = "write that entry of its config.json as transformers expects it"
_OWN_CODE_REMEDY = "use a base whose model type this version of transformers knows"


def load_config(source: str | Path, *, revision: str | None, place: str) -> Any:
    """The `transformers` configuration of a folder or Hub model, without anything that names code.

    place: what an error names: a key of the recipe, or a folder. Raises UserError where it cannot be loaded, or only
    with the repository's own code.
    """
    import transformers

    try:
        with contextlib.nullcontext() if Path(source).exists() else offline_without_network():
            values = config_file_values(source, revision=revision)
            _refuse_own_code(values, source=source, place=place)
            _refuse_misread(values, source=source, place=place)
            config = transformers.AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
        return without_code(config)
    except UserError:
        raise
    except Exception as error:  # any kind, where a file is damaged
        remedy = _ENTRY_REMEDY if "Validation error for field" in str(error) else ""
        raise UserError(place, f"{source}: cannot be loaded: {reason_of(error)}", remedy) from None


def config_file_values(source: str | Path, *, revision: str | None) -> Mapping[str, Any]:
    """What the `config.json` of a folder or Hub model holds, as it is written.

    Raises UserError for a folder whose file is missing or damaged, and what `transformers` raises for the Hub.
    """
    import transformers

    if (folder := Path(source)).is_dir():
        path = folder / "config.json"
        if not path.is_file():
            raise UserError(folder, "has no config.json, so it is not a model", _other_folder(folder))
        read_json_object(path, remedy=_CONFIG_REMEDY)
    with contextlib.nullcontext() if folder.exists() else offline_without_network():
        values: Mapping[str, Any]
        values, _ = transformers.PreTrainedConfig.get_config_dict(source, revision=revision)
    return values


def _other_folder(folder: Path) -> str:
    """What to name instead of a folder that holds models and is none."""
    if is_run_folder(folder):
        return RUN_REMEDY
    inner = sorted(path.parent.name for path in folder.glob("*/config.json"))
    return f"name the folder of a model, for example {folder / inner[-1]}" if inner else "name the folder of a model"


def config_of_values(values: Mapping[str, Any], *, place: str) -> Any:
    """The `transformers` configuration of plain values, as in a recipe. Raises UserError where there is none."""
    import transformers

    try:
        return without_code(transformers.AutoConfig.for_model(**values))
    except Exception as error:
        raise UserError(place, reason_of(error)) from None


def load_tokenizer(folder: Path) -> Any:
    """The `transformers` tokenizer of a prepared dataset, a run or an export, with its chat template.

    Raises UserError where its files are damaged or need code of their own.
    """
    import transformers

    logging.getLogger(_TOKENIZER_LOGGER).addFilter(_is_not_about_length)  # once, however often it is added
    path = folder / "tokenizer_config.json"
    if path.is_file() and (code := code_named_by(read_json_object(path, remedy=_FOLDER_REMEDY))):
        raise UserError(path, f"names code of its own ({', '.join(code)}), which is never run", _FOLDER_REMEDY)
    try:
        return transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # any kind, where a file is damaged
        raise UserError(folder, f"its tokenizer cannot be loaded: {reason_of(error)}", _FOLDER_REMEDY) from None


class TemplateError(UserError):
    """A chat template that fails, or refuses a conversation. kind: the name of the exception. reason: what it says."""

    def __init__(self, place: str, kind: str, reason: str) -> None:
        super().__init__(place, f"its chat template fails: {kind}: {reason}", _FOLDER_REMEDY)
        self.kind, self.reason = kind, reason
        self.args = (place, kind, reason)  # what unpickling calls this with


def prompt_ids(tokenizer: Any, messages: Sequence[Mapping[str, Any]], **variables: Any) -> Any:
    """The ids of a prompt by a tokenizer's chat template, or its text with `tokenize=False`.

    Raises TemplateError where there is no template, or where it fails.
    """
    try:
        return tokenizer.apply_chat_template(list(messages), return_dict=False, **variables)
    except Exception as error:  # a template is a program: whatever it does wrong
        raise TemplateError(str(tokenizer.name_or_path), type(error).__name__, reason_of(error)) from None


def answer_prompt_ids(tokenizer: Any, messages: Sequence[Mapping[str, Any]], condition: str | None) -> list[int]:
    """The ids of a prompt for an answer. condition: None for the template's own.

    Raises UserError as `prompt_ids`, and for a system message that the template leaves out silently.
    """
    variables = {"add_generation_prompt": True, **({} if condition is None else {"condition": condition})}
    ids: list[int] = prompt_ids(tokenizer, messages, **variables)
    if any(message["role"] == "system" and message["content"].strip() for message in messages):
        probe = [{"role": "system", "content": PROBE}, {"role": "user", "content": "x"}]
        if PROBE not in prompt_ids(tokenizer, probe, tokenize=False, **variables):
            problem = "its chat template shows nothing of a system message"
            raise UserError(tokenizer.name_or_path, problem, "leave the system message out")
    return ids


def _is_not_about_length(record: logging.LogRecord) -> bool:
    """Leaves out the warning of a text that is longer than the model was made for. Whoever asks a model compares the
    lengths, and says in its own words what does not fit.
    """
    return _LENGTH_WARNING not in record.getMessage()


def without_code(config: Any) -> Any:
    """The configuration, changed in place: it names no code any more, and neither does an export of it."""
    for part in parts_of(config):
        if hasattr(part, AUTO_MAP):
            delattr(part, AUTO_MAP)
        for name in _IMPLEMENTATIONS:
            if getattr(part, f"_{name}", None) is not None:
                setattr(part, f"_{name}", None)
    return config


def code_named_by(values: Mapping[str, Any]) -> list[str]:
    """What a parsed `config.json` or `tokenizer_config.json` names as code: `file.Class`, sorted."""
    found: set[str] = set()
    auto_map = values.get(AUTO_MAP)
    entries = list(auto_map.values()) if isinstance(auto_map, dict) else [auto_map]
    for entry in entries:
        found.update(text for text in (entry if isinstance(entry, list) else [entry]) if isinstance(text, str))
    for name in _IMPLEMENTATIONS:
        for value in (values.get(name), values.get(f"_{name}")):
            if isinstance(value, str) and "/" in value:
                found.add(value)
    return sorted(found)


def reason_of(error: Exception) -> str:
    """An error of another library in one short line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines) if lines else type(error).__name__
    return text if len(text) <= _MOST_CHARACTERS else text[: _MOST_CHARACTERS - 3] + "..."


def _refuse_own_code(values: Mapping[str, Any], *, source: str | Path, place: str) -> None:
    import transformers

    model_type, code = values.get("model_type"), code_named_by(values)
    if code and not (isinstance(model_type, str) and model_type in transformers.CONFIG_MAPPING):
        raise UserError(
            place,
            f"{source}: model type {model_type!r} exists only as Python code of that repository ({', '.join(code)}), "
            "which is never run",
            _OWN_CODE_REMEDY,
        )


def _refuse_misread(values: Mapping[str, Any], *, source: str | Path, place: str) -> None:
    """Raise UserError for values of other types than `transformers` expects, which it reports without their names."""
    import torch

    inner = [value for value in values.values() if isinstance(value, Mapping)]
    for part in (values, *inner):
        settings = part.get("quantization_config")
        if settings is not None and not isinstance(settings, Mapping):
            problem = f"{source}: `quantization_config` in its config.json is {shown(settings)}, and not an object"
            raise UserError(place, problem, "remove it if the weights are in 16 bits, or name another base")
        for key in ("dtype", "torch_dtype"):
            name = part.get(key)
            if name is None or name == "auto" or isinstance(name, Mapping):  # one for each part of a wrapper
                continue
            if not isinstance(getattr(torch, str(name).removeprefix("torch."), None), torch.dtype):
                problem = f"{source}: `{key}: {name}` in its config.json is no dtype of torch"
                raise UserError(place, problem, "write float32, float16 or bfloat16 there")


def parts_of(config: Any) -> Iterator[Any]:
    """A configuration and those inside it, of the text part for example."""
    yield config
    for name in getattr(config, "sub_configs", None) or {}:
        if (part := getattr(config, name, None)) is not None:
            yield from parts_of(part)
