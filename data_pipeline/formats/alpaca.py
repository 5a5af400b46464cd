"""Format `alpaca`: `instruction`, `input` and `output`, with an optional `history` of earlier pairs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from data_pipeline.errors import RowError
from data_pipeline.formats.row_format import ParsedRow, RowFormat
from data_pipeline.formats.values import message_of, system_of, text_of
from data_pipeline.text_rules import shown


def _parse(row: Mapping[str, Any]) -> ParsedRow:
    messages = []
    history = row.get("history") or []
    if not isinstance(history, list):
        raise RowError("wrong_type", f"history: expected a list, found {shown(history)}")
    for number, pair in enumerate(history):
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise RowError("wrong_type", f"history[{number}]: expected [prompt, answer], found {shown(pair)}")
        messages.append(message_of("user", pair[0], None, f"history[{number}][0]"))
        messages.append(message_of("assistant", pair[1], None, f"history[{number}][1]"))
    instruction, extra = text_of(row.get("instruction"), "instruction"), row.get("input")
    if extra:
        instruction += "\n\n" + text_of(extra, "input")
    messages += [
        message_of("user", instruction, None, "instruction"),
        message_of("assistant", row.get("output"), None, "output"),
    ]
    return system_of(row), messages


ALPACA = RowFormat(
    name="alpaca",
    parse=_parse,
    content_keys=frozenset(("id", "instruction", "input", "output", "history", "system")),
    example={
        "instruction": "Add the numbers.",
        "input": "6 and 7",
        "output": "13",
        "history": [["Hello", "Hi. What can I do for you?"]],
    },
)
