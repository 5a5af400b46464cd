"""Values of a row, each checked: the value, or a RowError that names its place, what was found and the rule."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from data_pipeline.conversation import Message, Role
from data_pipeline.errors import RowError
from data_pipeline.text_rules import RESERVED_CHARACTER, shown, text_problem
from data_pipeline.weight import LARGEST_WEIGHT

LONGEST_TEXT = 16_000_000  # characters of one text: tokenizing it takes 2 GiB, and no model reads a tenth of it


def message_of(role: str, content: Any, weight: Any, where: str) -> Message:
    """A user or assistant message that is not empty."""
    text = text_of(content, where)
    if not text or text.isspace():
        raise RowError("empty_message", f"{where}: the message is empty; remove it or the row")
    user_role: Role = "user" if role == "user" else "assistant"
    return Message(role=user_role, content=text, weight=weight_of(weight, where))


def weight_of(weight: Any, where: str, name: str = "weight") -> float | None:
    """A message's own weight, None where it has none. name: of the key that holds it."""
    if weight is None:
        return None
    if isinstance(weight, Decimal):
        weight = float(weight)
    if isinstance(weight, bool) or not isinstance(weight, int | float):
        raise RowError("invalid_weight", f"{where}.{name}: expected a number, found {shown(weight)}")
    # also false for NaN; compared before any conversion to float, which can overflow
    if not 0 <= weight <= LARGEST_WEIGHT:
        raise RowError("invalid_weight", f"{where}.{name}: {shown(weight)} is not a number from 0 to {LARGEST_WEIGHT}")
    return float(weight)


def text_of(value: Any, where: str) -> str:
    """A text that can be tokenized."""
    if isinstance(value, RowError):  # a value of Parquet or Arrow that cannot be read
        raise value
    if not isinstance(value, str):
        raise RowError("wrong_type", f"{where}: expected text, found {shown(value)}")
    if len(value) > LONGEST_TEXT:
        limit = f"{len(value):,} characters, at most {LONGEST_TEXT:,} are tokenized"
        raise RowError("huge_text", f"{where}: {limit}; shorten it or remove the row")
    if (problem := text_problem(value)) is not None:
        raise RowError("reserved_character" if RESERVED_CHARACTER in value else "lone_surrogate", f"{where}: {problem}")
    return value


def system_of(row: Mapping[str, Any], key: str | None) -> str:
    """The system text of a row, "" where there is none."""
    value = row.get(key) if key else None
    return "" if value in (None, "") else text_of(value, key or "")


def missing_key(row: Mapping[str, Any], key: str) -> RowError:
    """What to say of a row without a key of its format."""
    found = ", ".join(map(shown, list(row)[:10])) or "none"
    return RowError(
        "missing_key", f"key `{key}` is missing; found: {found}; is `format` right? `format: auto` finds it"
    )


def list_of(value: Any, row: Mapping[str, Any], key: str) -> list[Any]:
    """A list that has at least one entry. value: what the row has under the key, or what was made of it."""
    if key not in row:
        raise missing_key(row, key)
    if isinstance(value, RowError):
        raise value
    if not isinstance(value, list):
        raise RowError("wrong_type", f"{key}: expected a list, found {shown(value)}")
    if not value:
        raise RowError("no_messages", f"{key}: the list is empty")
    return value


def object_of(item: Any, where: str) -> Mapping[str, Any]:
    """An object."""
    if not isinstance(item, Mapping):
        raise RowError("wrong_type", f"{where}: expected an object, found {shown(item)}")
    return item
