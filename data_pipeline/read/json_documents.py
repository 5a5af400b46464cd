"""Rows of a JSON file that is not one row a line: a list, objects one after another, or a list under one key."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from data_pipeline.errors import RowError, UserError
from data_pipeline.formats.detect import Layout, layout_of
from data_pipeline.formats.fields import ROLE_KEYS
from data_pipeline.nesting import MOST_LEVELS, TOO_DEEP, end_of_value, is_text_too_deep, is_value_too_deep
from data_pipeline.text_rules import shown

_SPACE = " \t\r\n"
# Lists of messages or answers, and texts: an object with these is a row and wraps no rows.
_MESSAGE_LISTS = frozenset(
    (
        *("messages", "conversations", "conversation", "items", "turns", "dialog", "dialogue", "history"),
        *("chosen", "rejected", "answers", "completions", "responses", "candidates"),
    )
)
_ROW_KEYS = frozenset(
    ("prompt", "instruction", "question", "query", "input", "output", "answer", "response", "completion")
)


def is_one_conversation(item: Any) -> bool:
    """Whether the first item of a list is a message, so that the list is one row."""
    return isinstance(item, Mapping) and not item.keys().isdisjoint(ROLE_KEYS)


def row_list_keys(value: Any) -> list[str]:
    """The keys of an object that hold a list of rows; none where the object is a row itself."""
    if not isinstance(value, Mapping) or _ROW_KEYS & value.keys():
        return []
    lists = {key: item for key, item in value.items() if isinstance(item, list) and item}
    lists = {key: item for key, item in lists.items() if all(isinstance(row, Mapping) for row in item)}
    layout = layout_of(value) if lists else ""
    turns = layout.fields.messages if isinstance(layout, Layout) else None
    for key, items in lists.items():
        holds_lists = any(isinstance(part, list) for part in items[0].values())
        if is_one_conversation(items[0]) or (key in _MESSAGE_LISTS and (not holds_lists or key == turns)):
            return []
    if isinstance(layout, Layout) and layout.format != "turns":  # a list of turns may as well be one of rows
        return []
    return list(lists)


def document_rows(text: str, file: Path, *, split: str | None) -> Iterator[tuple[str, Any]]:
    """Rows of a JSON document, decoded one by one. split: the key of the list to read where there are several."""
    start = _skip_space(text, 0)
    if text[start : start + 1] == "[":
        rows = _list_rows(text, file, start)
    elif text[start : start + 1] == "{":
        rows = _object_rows(text, file, start, split=split)
    else:
        raise UserError(file, "expected a JSON list of objects", "or one object a line")
    for number, row in rows:
        yield f"{file}:row {number}", row


def _list_rows(text: str, file: Path, start: int) -> Iterator[tuple[int, Any]]:
    position, number = _skip_space(text, start + 1), 0
    while position < len(text) and text[position] != "]":
        number += 1
        row, end = _decoded(text, position, file, number)
        if number == 1 and is_one_conversation(row):
            yield 1, _one_list(text, file, start)
            return
        yield number, row
        position = _skip_space(text, end)
        if position < len(text) and text[position] == ",":
            position = _skip_space(text, position + 1)
        elif position < len(text) and text[position] != "]":
            raise UserError(file, f"expected `,` or `]` after row {number}")
    if position >= len(text):
        raise UserError(
            file, "the list has no end", f"{number} rows could be read, the rest is missing: get the file again"
        )
    if _skip_space(text, position + 1) != len(text):
        raise UserError(file, f"something follows after the list of {number} rows", "a JSON file holds one list")


def _one_list(text: str, file: Path, start: int) -> Any:
    """The list of messages that is the only row of a file."""
    row, end = _decoded(text, start, file, 1)
    if _skip_space(text, end) != len(text):
        raise UserError(file, "something follows after the list of messages", "write one conversation a line")
    return row


def _object_rows(text: str, file: Path, start: int, *, split: str | None) -> Iterator[tuple[int, Any]]:
    row, position = _decoded(text, start, file, 1)
    position = _skip_space(text, position)
    if position == len(text):
        yield from enumerate(_unwrapped(row, file, split=split), 1)
        return
    yield 1, row
    number = 1
    while position < len(text):
        number += 1
        row, end = _decoded(text, position, file, number)
        yield number, row
        position = _skip_space(text, end)


def _unwrapped(row: Any, file: Path, *, split: str | None) -> list[Any]:
    """The rows under the key of an object that holds them, or the object itself as the only row."""
    keys = row_list_keys(row)
    if split is not None:
        if split not in keys:
            held = f"keys with rows: {', '.join(map(shown, keys))}" if keys else "it holds no lists of rows by name"
            raise UserError(file, f"has no split {shown(split)}", f"{held}; remove `split` to read all of it")
        return list(row[split])
    if len(keys) > 1:
        names = ", ".join(map(shown, keys))
        raise UserError(file, f"holds several lists of rows ({names})", "name one of them as `split` of the source")
    return list(row[keys[0]]) if keys else [row]


def _decoded(text: str, position: int, file: Path, number: int) -> tuple[Any, int]:
    """A row and where its text ends; the row is a RowError where it is JSON, but not a row."""
    row: Any
    try:
        try:
            row, end = _decoder().raw_decode(text, position)
        except RowError as error:  # readable JSON, but not a row
            row, end = error, json.JSONDecoder().raw_decode(text, position)[1]
    except (ValueError, RecursionError) as error:
        is_too_deep = is_text_too_deep(text, position)
        if is_too_deep and (found := end_of_value(text, position)) is not None:
            return _too_deep(), found
        problem = f"cut off or not JSON in row {number}: {TOO_DEEP if is_too_deep else error}"
        raise UserError(file, problem, f"{number - 1} rows could be read") from None
    num_brackets = text.count("[", position, end) + text.count("{", position, end)
    return _not_too_deep(row, num_brackets), end


def _skip_space(text: str, position: int) -> int:
    while position < len(text) and text[position] in _SPACE:
        position += 1
    return position


def parse_line(line: bytes) -> Any:
    """The row of a line of JSON, or the RowError that says why there is none."""
    try:
        text = line.decode("utf-8").removeprefix("\ufeff")  # a mark in front of a row: files were joined
    except UnicodeDecodeError as error:
        return RowError(
            "invalid_utf8", f"byte {error.start} ({line[error.start]:#04x}) is not valid UTF-8; save the file as UTF-8"
        )
    try:
        return _not_too_deep(_decoder().decode(text), text.count("[") + text.count("{"))
    except RowError as error:
        return error
    except (ValueError, RecursionError) as error:
        return _too_deep() if is_text_too_deep(text) else RowError("invalid_json", f"not valid JSON: {error}")


def _not_too_deep(row: Any, num_brackets: int) -> Any:
    """The row, or a RowError where it is nested so deeply that whatever walks through it could fail."""
    return _too_deep() if num_brackets > MOST_LEVELS and is_value_too_deep(row) else row


def _too_deep() -> RowError:
    return RowError("invalid_json", f"{TOO_DEEP}, which no conversation is")


def _decoder() -> json.JSONDecoder:
    return json.JSONDecoder(object_pairs_hook=_object_without_duplicates)


def _object_without_duplicates(pairs: list[tuple[str, Any]]) -> Mapping[str, Any]:
    row = dict(pairs)
    if len(row) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise RowError("duplicate_key", f"key {shown(twice)} appears twice in one object; keep one")
    return row
