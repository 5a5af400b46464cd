"""Conversations in one text, in which every turn begins with an empty line and `Human:` or `Assistant:`."""

from __future__ import annotations

import re
from typing import Any

from data_pipeline.conversation import Message
from data_pipeline.formats.values import message_of

_HUMAN = "\n\nHuman:"
_TURN = re.compile(r"\n\n(Human|Assistant):")


def is_transcript(value: Any) -> bool:
    """Whether a value is such a text; it begins with a turn of the human."""
    return isinstance(value, str) and value.startswith(_HUMAN)


def transcript(text: str, key: str) -> list[Message]:
    """The messages of such a text, without an empty turn of the assistant at its end, where an answer is to follow."""
    _, *parts = _TURN.split(text)
    pairs = zip(parts[::2], parts[1::2], strict=True)
    turns = [("user" if name == "Human" else "assistant", said.strip()) for name, said in pairs]
    if turns[-1] == ("assistant", ""):
        turns.pop()
    return [message_of(role, said, None, key) for role, said in turns]


def prompt_messages(value: Any, key: str) -> list[Message]:
    """The messages of a prompt: one of the user, or those of a transcript."""
    return transcript(value, key) if is_transcript(value) else [message_of("user", value, None, key)]
