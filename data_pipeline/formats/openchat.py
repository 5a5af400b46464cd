"""Format `openchat`: the rows that OpenChat's `ochat.data.generate_dataset` reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from data_pipeline.conversation import Message
from data_pipeline.formats.row_format import ParsedRow, RowFormat
from data_pipeline.formats.values import list_of, message_of, object_of, role_of, system_of

_ROLES = {"user": "user", "assistant": "assistant"}


def _parse(row: Mapping[str, Any]) -> ParsedRow:
    messages = []
    for number, item in enumerate(list_of(row, "items")):
        where = f"items[{number}]"
        message = object_of(item, where)
        role = role_of(message.get("role"), _ROLES, f"{where}.role")
        messages.append(message_of(role, message.get("content"), message.get("weight"), where))
    return system_of(row), messages


def _masks_alone(messages: Sequence[Message]) -> list[Message]:
    """The rows hold the weight of the class itself. Under another class only "masked" (0) is left of it."""
    return [replace(message, weight=0.0 if message.weight == 0 else None) for message in messages]


OPENCHAT = RowFormat(
    name="openchat",
    parse=_parse,
    content_keys=frozenset(("id", "items", "system")),
    example={
        "items": [
            {"role": "user", "content": "What is 6 times 7?", "weight": 0.0},
            {"role": "assistant", "content": "42.", "weight": 1.0},
        ],
        "condition": "GPT4",
        "system": "",
    },
    carries_class=True,
    messages_in_class=_masks_alone,
)
