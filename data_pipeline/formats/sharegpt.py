"""Format `sharegpt`: `conversations` of `from` and `value`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from data_pipeline.formats.row_format import ParsedRow, RowFormat
from data_pipeline.formats.values import objects_of, role_of, split_system

_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "system": "system",
}


def _parse(row: Mapping[str, Any]) -> ParsedRow:
    turns = [
        (role_of(turn.get("from"), _ROLES, f"conversations[{number}].from"), turn.get("value"), turn.get("weight"))
        for number, turn in enumerate(objects_of(row, "conversations"))
    ]
    return split_system(turns, row.get("system"), "conversations", "value")


SHAREGPT = RowFormat(
    name="sharegpt",
    parse=_parse,
    content_keys=frozenset(("id", "conversations", "system")),
    example={
        "id": "abc_0",
        "system": "Answer briefly.",
        "conversations": [
            {"from": "human", "value": "What is 6 times 7?"},
            {"from": "gpt", "value": "42."},
        ],
    },
)
