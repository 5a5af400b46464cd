"""Format `messages`: OpenAI's chat messages, text only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from data_pipeline.errors import RowError
from data_pipeline.formats.row_format import ParsedRow, RowFormat
from data_pipeline.formats.values import objects_of, role_of, split_system, text_of
from data_pipeline.text_rules import shown

_ROLES = {"user": "user", "assistant": "assistant", "system": "system", "developer": "system"}


def _parse(row: Mapping[str, Any]) -> ParsedRow:
    turns = []
    for number, turn in enumerate(objects_of(row, "messages")):
        where = f"messages[{number}]"
        if turn.get("tool_calls"):
            raise RowError("unsupported_content", f"{where}.tool_calls: tool calls are not supported; remove the row")
        content = turn.get("content")
        if isinstance(content, list):
            content = "".join(_text_part(part, where) for part in content)
        turns.append((role_of(turn.get("role"), _ROLES, f"{where}.role"), content, turn.get("weight")))
    return split_system(turns, row.get("system"), "messages", "content")


def _text_part(part: Any, where: str) -> str:
    if not isinstance(part, Mapping) or part.get("type") != "text":
        kind = part.get("type") if isinstance(part, Mapping) else part
        raise RowError(
            "unsupported_content", f"{where}.content: only parts of type `text` are supported, found {shown(kind)}"
        )
    return text_of(part.get("text"), f"{where}.content")


MESSAGES = RowFormat(
    name="messages",
    parse=_parse,
    content_keys=frozenset(("id", "messages", "system")),
    example={
        "messages": [
            {"role": "system", "content": "Answer briefly."},
            {"role": "user", "content": "What is 6 times 7?"},
            {"role": "assistant", "content": [{"type": "text", "text": "42."}]},
        ]
    },
)
