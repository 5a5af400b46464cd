"""One raw row to one conversation: the source's format, and the fields around the messages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from data_pipeline.conversation import Conversation
from data_pipeline.errors import RowError
from data_pipeline.formats.parts import tools_of, with_reasoning_of_tags
from data_pipeline.formats.values import text_of
from data_pipeline.settings import SourceSettings
from data_pipeline.text_rules import shown
from data_pipeline.weight import LARGEST_WEIGHT


def parse_row(row: Any, *, place: str, source: SourceSettings, scored_by: str | None = None) -> Conversation:
    """Read one raw row of text in the source's format. scored_by: the field whose quantiles decide the row's class.

    Raises RowError for everything that is not a conversation with at least one assistant message.
    """
    if isinstance(row, RowError):
        raise row
    if not isinstance(row, Mapping):
        raise RowError("not_an_object", f"expected an object, found {shown(row)}")
    row_format = source.row_format
    assert row_format.parse is not None, "rows of tokens have their own reader"
    system, messages = row_format.parse(row)
    has_own_class = row_format.carries_class and not (source.class_name or source.class_field or scored_by)
    if not has_own_class:
        messages = row_format.messages_in_class(messages)
    if source.think_tags:
        messages = with_reasoning_of_tags(messages, row_format.name)
    if not any(message.role == "assistant" for message in messages):
        raise RowError("no_assistant_message", "no assistant message: nothing to learn from")
    score_field = scored_by or source.reward_field
    return Conversation(
        id=_identifier(row, place),
        place=place,
        messages=tuple(messages),
        system=system,
        class_value=_class_value(row, source.class_field) if source.class_field else None,
        condition=_condition(row) if has_own_class else None,
        score=_score(row, score_field) if score_field else None,
        tools=tools_of(row),
    )


def _identifier(row: Mapping[str, Any], place: str) -> str:
    value = row.get("id")
    if value is None:
        return place
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise RowError("wrong_type", f"id: expected text or a whole number, found {shown(value)}")
    return text_of(str(value), "id")


def _condition(row: Mapping[str, Any]) -> str:
    if "condition" not in row:
        raise RowError(
            "missing_key", 'key `condition` is missing; give it (`""` for none), or give the source a `class`'
        )
    return text_of(row["condition"], "condition")


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
    if not is_number or not -LARGEST_WEIGHT <= value <= LARGEST_WEIGHT:  # also false for NaN
        raise RowError(
            "invalid_reward", f"{field}: {shown(value)} is not a number from -{LARGEST_WEIGHT} to {LARGEST_WEIGHT}"
        )
    return float(value)


def _class_value(row: Mapping[str, Any], field: str) -> str:
    value = _field(row, field, "names the class")
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise RowError("wrong_type", f"{field}: expected the name of a class, found {shown(value)}")
    return str(value)
