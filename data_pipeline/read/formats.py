"""The four formats of rows with text: the only file that knows how one is laid out. Row in, Conversation out, or
RowError.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from data_pipeline.conversation import Conversation, Message, Role
from data_pipeline.errors import RowError
from data_pipeline.settings import SourceSettings
from data_pipeline.text_rules import RESERVED_CHARACTER, shown, text_problem

LARGEST_WEIGHT = 1_000_000

_SHAREGPT_ROLES: Mapping[str, str] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "system": "system",
}
_OPENAI_ROLES: Mapping[str, str] = {"user": "user", "assistant": "assistant", "system": "system", "developer": "system"}


def parse_row(row: Any, *, place: str, source: SourceSettings, scored_by: str | None = None) -> Conversation:
    """Read one raw row in the source's format. scored_by: the field that decides the row's class, by quantiles.

    Raises RowError for everything that is not a conversation with at least one assistant message.
    """
    if isinstance(row, RowError):
        raise row
    if not isinstance(row, Mapping):
        raise RowError("not_an_object", f"expected an object, found {shown(row)}")
    system, messages = _PARSERS[source.format](row)
    weights_in_row = source.format == "openchat" and not (source.class_name or source.class_field or scored_by)
    score_field = scored_by or source.reward_field
    if source.format == "openchat" and not weights_in_row:
        # OpenChat's rows hold the class weight itself; where the class table rules, only "masked" (0) is left of it.
        messages = [replace(message, weight=0.0 if message.weight == 0 else None) for message in messages]
    if not any(message.role == "assistant" for message in messages):
        raise RowError("no_assistant_message", "no assistant message: nothing to learn from")
    return Conversation(
        id=_identifier(row, place),
        place=place,
        messages=tuple(messages),
        system=system,
        class_value=_class_value(row, source.class_field) if source.class_field else None,
        condition=_condition(row) if weights_in_row else None,
        score=_score(row, score_field) if score_field else None,
    )


def _parse_openchat(row: Mapping[str, Any]) -> tuple[str, list[Message]]:
    items = _list(row, "items")
    messages = []
    for number, item in enumerate(items):
        where = f"items[{number}]"
        message = _object(item, where)
        role = _role(message.get("role"), {"user": "user", "assistant": "assistant"}, f"{where}.role")
        messages.append(_message(role, message.get("content"), message.get("weight"), where))
    system = row.get("system")
    return "" if system in (None, "") else _text(system, "system"), messages


def _parse_sharegpt(row: Mapping[str, Any]) -> tuple[str, list[Message]]:
    turns = [
        (
            _role(turn.get("from"), _SHAREGPT_ROLES, f"conversations[{number}].from"),
            turn.get("value"),
            turn.get("weight"),
        )
        for number, turn in enumerate(_objects(row, "conversations"))
    ]
    return _split_system(turns, row.get("system"), "conversations", "value")


def _parse_messages(row: Mapping[str, Any]) -> tuple[str, list[Message]]:
    turns = []
    for number, turn in enumerate(_objects(row, "messages")):
        where = f"messages[{number}]"
        if turn.get("tool_calls"):
            raise RowError("unsupported_content", f"{where}.tool_calls: tool calls are not supported; remove the row")
        content = turn.get("content")
        if isinstance(content, list):
            content = "".join(_text_part(part, where) for part in content)
        turns.append((_role(turn.get("role"), _OPENAI_ROLES, f"{where}.role"), content, turn.get("weight")))
    return _split_system(turns, row.get("system"), "messages", "content")


def _parse_alpaca(row: Mapping[str, Any]) -> tuple[str, list[Message]]:
    messages = []
    history = row.get("history") or []
    if not isinstance(history, list):
        raise RowError("wrong_type", f"history: expected a list, found {shown(history)}")
    for number, pair in enumerate(history):
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise RowError("wrong_type", f"history[{number}]: expected [prompt, answer], found {shown(pair)}")
        messages.append(_message("user", pair[0], None, f"history[{number}][0]"))
        messages.append(_message("assistant", pair[1], None, f"history[{number}][1]"))
    instruction, extra = _text(row.get("instruction"), "instruction"), row.get("input")
    if extra:
        instruction += "\n\n" + _text(extra, "input")
    messages += [
        _message("user", instruction, None, "instruction"),
        _message("assistant", row.get("output"), None, "output"),
    ]
    system = row.get("system")
    return "" if system in (None, "") else _text(system, "system"), messages


_PARSERS: Mapping[str, Callable[[Mapping[str, Any]], tuple[str, list[Message]]]] = {
    "openchat": _parse_openchat,
    "sharegpt": _parse_sharegpt,
    "messages": _parse_messages,
    "alpaca": _parse_alpaca,
}


def _split_system(turns: list[tuple[str, Any, Any]], system: Any, key: str, value: str) -> tuple[str, list[Message]]:
    """Take the system message off the front. A second one, or one in the middle, is an error."""
    text = "" if system in (None, "") else _text(system, "system")
    first = 1
    if turns and turns[0][0] == "system":
        if text:
            raise RowError("misplaced_system", f"a system text stands both in `system` and in {key}[0]; keep one")
        content = turns[0][1]
        text = "" if content == "" else _text(content, f"{key}[0].{value}")
        turns, first = turns[1:], 2
    messages = []
    for number, (role, content, weight) in enumerate(turns, first):
        if role == "system":
            raise RowError("misplaced_system", f"{key}: a system message may only stand first, as the only one")
        messages.append(_message(role, content, weight, f"{key}, turn {number}"))
    return text, messages


def _message(role: str, content: Any, weight: Any, where: str) -> Message:
    text = _text(content, where)
    if not text.strip():
        raise RowError("empty_message", f"{where}: the message is empty; remove it or the row")
    user_role: Role = "user" if role == "user" else "assistant"
    return Message(role=user_role, content=text, weight=_weight(weight, where))


def _weight(weight: Any, where: str) -> float | None:
    if weight is None:
        return None
    if isinstance(weight, bool) or not isinstance(weight, int | float):
        raise RowError("invalid_weight", f"{where}.weight: expected a number, found {shown(weight)}")
    # false for NaN too; compared before any conversion to float, which can overflow
    if not 0 <= weight <= LARGEST_WEIGHT:
        raise RowError("invalid_weight", f"{where}.weight: {shown(weight)} is not a number from 0 to {LARGEST_WEIGHT}")
    return float(weight)


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise RowError("wrong_type", f"{where}: expected text, found {shown(value)}")
    if (problem := text_problem(value)) is not None:
        raise RowError("reserved_character" if RESERVED_CHARACTER in value else "lone_surrogate", f"{where}: {problem}")
    return value


def _text_part(part: Any, where: str) -> str:
    if not isinstance(part, Mapping) or part.get("type") != "text":
        kind = part.get("type") if isinstance(part, Mapping) else part
        raise RowError(
            "unsupported_content", f"{where}.content: only parts of type `text` are supported, found {shown(kind)}"
        )
    return _text(part.get("text"), f"{where}.content")


def _role(role: Any, roles: Mapping[str, str], where: str) -> str:
    if not isinstance(role, str) or role not in roles:
        raise RowError("unknown_role", f"{where}: unknown role {shown(role)}; known: {', '.join(roles)}")
    return roles[role]


def _list(row: Mapping[str, Any], key: str) -> list[Any]:
    value = row.get(key)
    if key not in row:
        found = ", ".join(map(shown, list(row)[:10])) or "none"
        raise RowError("missing_key", f"key `{key}` is missing; found: {found}; is `format` right?")
    if not isinstance(value, list):
        raise RowError("wrong_type", f"{key}: expected a list, found {shown(value)}")
    if not value:
        raise RowError("no_messages", f"{key}: the list is empty")
    return value


def _objects(row: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    return [_object(item, f"{key}[{number}]") for number, item in enumerate(_list(row, key))]


def _object(item: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(item, Mapping):
        raise RowError("wrong_type", f"{where}: expected an object, found {shown(item)}")
    return item


def _identifier(row: Mapping[str, Any], place: str) -> str:
    value = row.get("id")
    if value is None:
        return place
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise RowError("wrong_type", f"id: expected text or a whole number, found {shown(value)}")
    return _text(str(value), "id")


def _condition(row: Mapping[str, Any]) -> str:
    if "condition" not in row:
        raise RowError(
            "missing_key", 'key `condition` is missing; give it (`""` for none), or give the source a `class`'
        )
    return _text(row["condition"], "condition")


def _field(row: Mapping[str, Any], field: str, meaning: str) -> Any:
    value: Any = row
    for key in field.split("."):
        if not isinstance(value, Mapping) or key not in value:
            raise RowError("missing_key", f"field `{field}`, which {meaning}, is missing")
        value = value[key]
    return value


def _score(row: Mapping[str, Any], field: str) -> float:
    value = _field(row, field, "holds the reward")
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not -LARGEST_WEIGHT <= value <= LARGEST_WEIGHT:  # false for NaN, too
        raise RowError(
            "invalid_reward", f"{field}: {shown(value)} is not a number from -{LARGEST_WEIGHT} to {LARGEST_WEIGHT}"
        )
    return float(value)


def _class_value(row: Mapping[str, Any], field: str) -> str:
    value = _field(row, field, "names the class")
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise RowError("wrong_type", f"{field}: expected the name of a class, found {shown(value)}")
    return str(value)
