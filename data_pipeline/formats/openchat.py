"""Format `openchat`: the rows that OpenChat's `ochat.data.generate_dataset` reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from data_pipeline.conversation import Message
from data_pipeline.errors import RowError
from data_pipeline.formats.chat import ChatReader
from data_pipeline.formats.fields import Fields
from data_pipeline.formats.row_format import ParsedRow, RowFormat
from data_pipeline.text_rules import shown

_ROLES = ("user", "assistant")


class OpenchatReader(ChatReader):
    """Reads `items`, whose roles are only these two."""

    def __call__(self, row: Any) -> Sequence[ParsedRow]:
        """The conversation of a row."""
        for number, item in enumerate(self.turns(row, self._key)):
            if item.get("role") not in _ROLES:
                known = ", ".join(_ROLES)
                found = shown(item.get("role"))
                raise RowError("unknown_role", f"items[{number}].role: unknown role {found}; known: {known}")
        return super().__call__(row)


def _masks_alone(messages: Sequence[Message]) -> list[Message]:
    """The rows hold the weight of the class itself. Under another class only "masked" (0) is left of it."""
    return [replace(message, weight=0.0 if message.weight == 0 else None) for message in messages]


OPENCHAT = RowFormat(
    name="openchat",
    fields=Fields(messages="items", role="role", content="content"),
    parser=OpenchatReader,
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
