"""The files of a tokenizer, made ready for a template. They come from strangers, and may hold anything."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from data_pipeline.errors import UserError
from data_pipeline.json_files import read_json_object
from data_pipeline.prompt.library_errors import TOKENIZER_REMEDY, tokenizers_errors
from data_pipeline.prompt.template import Template
from data_pipeline.prompt.tokenization import TokenizerSpec
from data_pipeline.text_rules import RESERVED_CHARACTER, shown

_MOST_TOKENS = 1 << 24  # an embedding with more rows than that is a damaged file


def load_tokenizer_spec(files: Mapping[str, Path], template: Template | None) -> TokenizerSpec:
    """Read a tokenizer and make it ready for a template, or for the base's own (None), which needs no other tokens.

    Raises UserError for files that are damaged or that a chat template cannot do justice to.
    """
    control_tokens = () if template is None else template.control_tokens
    names = _named_tokens(files)
    path = files["tokenizer.json"]
    description = _checked_description(path)
    for key in ("truncation", "padding"):  # a length limit saved with the tokenizer would cut text silently
        description[key] = None
    _remove_reserved_character(description, path)
    for token in description["added_tokens"]:
        if token["special"]:  # looked for before the text is normalized, which removes U+FDD0
            token["normalized"] = False
    with tokenizers_errors(path):
        tokenizer = Tokenizer.from_str(json.dumps(description))
        added = tuple(token for token in control_tokens if tokenizer.token_to_id(token) is None)
        tokenizer.add_special_tokens([_control_token(token) for token in control_tokens])
    bos_token = names["bos_token"]
    if bos_token is not None and tokenizer.token_to_id(bos_token) is None:
        raise UserError("model", f"{path}: bos_token {shown(bos_token)} is not in the vocabulary", TOKENIZER_REMEDY)
    if bos_token in control_tokens or (template is not None and not template.bos):
        bos_token = None  # such as chatml on a tokenizer whose BOS is <|im_start|>: the first header is the beginning
    special = {token["content"] for token in description["added_tokens"] if token["special"]}
    if bos_token is not None and bos_token not in special:
        tokenizer.add_special_tokens([_control_token(bos_token)])  # as transformers does when it loads the folder
    spec = TokenizerSpec(
        backend=tokenizer.to_str(),
        bos_token=bos_token,
        # transformers would give a token that the vocabulary lacks an id of its own, for which the model has no row
        pad_token=_if_known(names["pad_token"], tokenizer),
        unk_token=_if_known(names["unk_token"], tokenizer),
        added_control_tokens=added,
    )
    _check_spec(spec, path)
    _check_ids(description, tokenizer, path)
    return spec


def with_special_token(spec: TokenizerSpec, token: str) -> TokenizerSpec:
    """The same with a token of its vocabulary as a control token, as `transformers` makes its named tokens."""
    tokenizer = Tokenizer.from_str(spec.backend)
    if token in spec.special_tokens or tokenizer.token_to_id(token) is None:
        return spec
    tokenizer.add_special_tokens([_control_token(token)])
    return replace(spec, backend=tokenizer.to_str())


def _named_tokens(files: Mapping[str, Path]) -> dict[str, str | None]:
    """`bos_token`, `pad_token` and `unk_token` of the files around tokenizer.json; None for those that have no name."""
    config: dict[str, Any] = {}
    origin: dict[str, Path] = {}
    for file in ("special_tokens_map.json", "tokenizer_config.json"):
        if file in files:
            values = read_json_object(files[file], remedy=TOKENIZER_REMEDY)
            config.update(values)
            origin.update(dict.fromkeys(values, files[file]))
    names: dict[str, str | None] = {}
    for key in ("bos_token", "pad_token", "unk_token"):
        value = config.get(key)
        text = value.get("content") if isinstance(value, dict) else value
        if value is not None and not isinstance(text, str):
            raise UserError(origin[key], f"{key}: {shown(value)} is not a token", TOKENIZER_REMEDY)
        names[key] = text
    return names


def _checked_description(path: Path) -> dict[str, Any]:
    """tokenizer.json as the library reads it. Raises UserError for what it would refuse or misread."""
    description = read_json_object(path, remedy=TOKENIZER_REMEDY)
    tokens = description.setdefault("added_tokens", [])
    wanted = {"id": int, "content": str, "special": bool}
    for token in tokens if isinstance(tokens, list) else [tokens]:
        if not isinstance(token, dict) or any(not isinstance(token.get(key), kind) for key, kind in wanted.items()):
            raise UserError(path, f"is damaged: added_tokens holds {shown(token)}", TOKENIZER_REMEDY)
    model = description.get("model")
    vocab = model.get("vocab") if isinstance(model, dict) else None
    ids = [number for number in vocab.values() if isinstance(number, int)] if isinstance(vocab, dict) else []
    largest = max([*ids, *(token["id"] for token in tokens)], default=0)
    if largest >= _MOST_TOKENS:  # before the library counts up to it, which takes a minute
        problem = f"is damaged: its largest id is {largest:,}, more than a model has rows for"
        raise UserError(path, problem, TOKENIZER_REMEDY)
    return description


def _check_ids(description: Mapping[str, Any], tokenizer: Tokenizer, path: Path) -> None:
    """Raise UserError for added tokens whose ids are not those that the file says.

    The library gives a token that the vocabulary lacks the next free id, in the order of the file, whatever id is
    written there. A base that was trained with the written ids would answer with the rows of other tokens.
    """
    for token in description["added_tokens"]:
        if (found := tokenizer.token_to_id(token["content"])) != token["id"]:
            raise UserError(
                path,
                f"says that {shown(token['content'])} has the id {token['id']}, and the `tokenizers` library gives it "
                f"{found}: ids of added tokens must follow the vocabulary without gaps, in the order of the file",
                "save it again with the library that the base was trained with, or name another `model.tokenizer`",
            )


def _check_spec(spec: TokenizerSpec, path: Path) -> None:
    """Raise UserError for control tokens that text cannot be kept apart from."""
    if short := [token for token in spec.special_tokens if len(token) < 2]:
        raise UserError(
            "model.tokenizer",
            f"{path}: the control token {shown(short[0])} has fewer than two characters, so a chat template cannot "
            "keep text that holds it apart from it",
            'set `"special": false` for it in `added_tokens`, or name another `model.tokenizer`',
        )


def _control_token(text: str) -> AddedToken:
    return AddedToken(text, special=True, normalized=False, single_word=False)


def _if_known(token: str | None, tokenizer: Tokenizer) -> str | None:
    return None if token is None or tokenizer.token_to_id(token) is None else token


def _remove_reserved_character(description: dict[str, Any], path: Path) -> None:
    """Let the normalizer delete U+FDD0, which the chat template puts into control strings that a person typed."""
    remove = {"type": "Replace", "pattern": {"String": RESERVED_CHARACTER}, "content": ""}
    old = description.get("normalizer")
    parts = old.get("normalizers") if isinstance(old, dict) and old.get("type") == "Sequence" else [old]
    if not isinstance(parts, list) or not (old is None or isinstance(old, dict)):
        raise UserError(path, f"is damaged: its normalizer is {shown(old)}", TOKENIZER_REMEDY)
    rest = [] if old is None else parts
    if remove not in rest:
        description["normalizer"] = {"type": "Sequence", "normalizers": [remove, *rest]}
