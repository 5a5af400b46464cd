"""Format `openchat`: the rows that OpenChat's `ochat.data.generate_dataset` reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from data_pipeline.conversation import Message
from data_pipeline.errors import RowError
from data_pipeline.formats.chat import ChatReader
from data_pipeline.formats.fields import Fields
from data_pipeline.formats.row_format import RowFormat
from data_pipeline.text_rules import shown

_ROLES = ("user", "assistant")


class OpenchatReader(ChatReader):
    """Reads `items`, whose roles are only these two."""

    usual_roles: ClassVar[Mapping[str, str]] = {role: role for role in _ROLES}

    def role_of(self, turn: Mapping[str, Any], where: str) -> str:
        """The role of a message."""
        key = self._role or "role"
        role = turn.get(key)
        if role not in _ROLES:
            raise RowError("unknown_role", f"{where}.{key}: unknown role {shown(role)}; known: {', '.join(_ROLES)}")
        return str(role)


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
