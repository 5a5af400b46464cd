"""Format `sharegpt`: `conversations` of `from` and `value`."""

from __future__ import annotations

from data_pipeline.formats.chat import ChatReader
from data_pipeline.formats.fields import Fields
from data_pipeline.formats.row_format import RowFormat

SHAREGPT = RowFormat(
    name="sharegpt",
    fields=Fields(messages="conversations", role="from", content="value"),
    parser=ChatReader,
    example={
        "id": "abc_0",
        "system": "Answer briefly.",
        "conversations": [
            {"from": "human", "value": "What is 6 times 7?"},
            {"from": "gpt", "value": "42."},
        ],
    },
)
