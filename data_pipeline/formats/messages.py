"""Format `messages`: OpenAI's chat messages, with reasoning, tool calls and results of tools."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from data_pipeline.conversation import Role
from data_pipeline.errors import RowError
from data_pipeline.formats.parts import message_with_parts, text_of_content
from data_pipeline.formats.row_format import ParsedRow, RowFormat
from data_pipeline.formats.values import objects_of, role_of, split_system

_ROLES = {"user": "user", "assistant": "assistant", "tool": "tool", "system": "system", "developer": "system"}
_OURS: Mapping[str, Role] = {"user": "user", "assistant": "assistant", "tool": "tool"}


def _parse(row: Mapping[str, Any]) -> ParsedRow:
    turns = objects_of(row, "messages")
    roles = [role_of(turn.get("role"), _ROLES, f"messages[{number}].role") for number, turn in enumerate(turns)]
    has_head = roles[0] == "system"
    heads = [("system", text_of_content(turns[0].get("content"), "messages[0].content"), None)] if has_head else []
    system, _ = split_system(heads, row.get("system"), "messages", "content")
    messages = []
    for number, (role, turn) in enumerate(zip(roles[has_head:], turns[has_head:], strict=True), 1 + has_head):
        if role == "system":
            raise RowError("misplaced_system", "messages: a system message must be the first message, and the only one")
        messages.append(message_with_parts(_OURS[role], turn, f"messages, turn {number}"))
    return system, messages


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
