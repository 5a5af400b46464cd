"""Values of a row, each checked: the value, or a RowError that names its place, what was found and the rule."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from data_pipeline.conversation import Message, Role
from data_pipeline.errors import RowError
from data_pipeline.text_rules import RESERVED_CHARACTER, shown, text_problem
from data_pipeline.weight import LARGEST_WEIGHT


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
    if not isinstance(value, str):
        raise RowError("wrong_type", f"{where}: expected text, found {shown(value)}")
    if (problem := text_problem(value)) is not None:
        raise RowError("reserved_character" if RESERVED_CHARACTER in value else "lone_surrogate", f"{where}: {problem}")
    return value


def system_of(row: Mapping[str, Any]) -> str:
    """The text of the key `system`, "" where there is none."""
    value = row.get("system")
    return "" if value in (None, "") else text_of(value, "system")


def role_of(role: Any, roles: Mapping[str, str], where: str) -> str:
    """What a role is called here; roles: its name in the row -> `user`, `assistant` or `system`."""
    if not isinstance(role, str) or role not in roles:
        raise RowError("unknown_role", f"{where}: unknown role {shown(role)}; known: {', '.join(roles)}")
    return roles[role]


def list_of(row: Mapping[str, Any], key: str) -> list[Any]:
    """A list that has at least one entry."""
    value = row.get(key)
    if key not in row:
        found = ", ".join(map(shown, list(row)[:10])) or "none"
        raise RowError(
            "missing_key", f"key `{key}` is missing; found: {found}; is `format` right? `format: auto` finds it"
        )
    if not isinstance(value, list):
        raise RowError("wrong_type", f"{key}: expected a list, found {shown(value)}")
    if not value:
        raise RowError("no_messages", f"{key}: the list is empty")
    return value


def objects_of(row: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    """The objects of a list that has at least one."""
    return [object_of(item, f"{key}[{number}]") for number, item in enumerate(list_of(row, key))]


def object_of(item: Any, where: str) -> Mapping[str, Any]:
    """An object."""
    if not isinstance(item, Mapping):
        raise RowError("wrong_type", f"{where}: expected an object, found {shown(item)}")
    return item


def split_system(turns: list[tuple[str, Any, Any]], system: Any, key: str, value: str) -> tuple[str, list[Message]]:
    """Take the system message off the front. A second one, or one in the middle, is an error.

    turns: (role, content, weight). system: the row's own `system`. key, value: where a message and its content are.
    """
    text = "" if system in (None, "") else text_of(system, "system")
    first = 1
    if turns and turns[0][0] == "system":
        if text:
            raise RowError("misplaced_system", f"both `system` and {key}[0] hold a system text; keep one")
        content = turns[0][1]
        text = "" if content == "" else text_of(content, f"{key}[0].{value}")
        turns, first = turns[1:], 2
    messages = []
    for number, (role, content, weight) in enumerate(turns, first):
        if role == "system":
            raise RowError("misplaced_system", f"{key}: a system message must be the first message, and the only one")
        messages.append(message_of(role, content, weight, f"{key}, turn {number}"))
    return text, messages
