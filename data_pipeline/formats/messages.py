"""Format `messages`: OpenAI's chat messages, with reasoning, tool calls and results of tools."""

from __future__ import annotations

from data_pipeline.formats.chat import ChatReader
from data_pipeline.formats.fields import Fields
from data_pipeline.formats.row_format import RowFormat

MESSAGES = RowFormat(
    name="messages",
    fields=Fields(messages="messages", role="role", content="content"),
    parser=ChatReader,
    example={
        "messages": [
            {"role": "system", "content": "Answer briefly."},
            {"role": "user", "content": "What is 6 times 7?"},
            {"role": "assistant", "content": [{"type": "text", "text": "42."}]},
        ]
    },
)
