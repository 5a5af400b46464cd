"""What answers a chat: a model in this process, or a server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from ochat_train.inference.engine import Piece


class ChatError(Exception):
    """Something did not work, and the chat continues. The text is for the person who chats."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is to be answered. messages: the last one is the user's. The others are those of `Session`."""

    messages: Sequence[Mapping[str, str]]
    condition: str | None
    temperature: float
    max_new_tokens: int | None
    seed: int | None


@dataclass(frozen=True, kw_only=True)
class SentPrompt:
    """The prompt of a question. ids: [T]."""

    text: str
    ids: Sequence[int]


@dataclass(frozen=True, kw_only=True)
class ChatModel:
    """What answers. conditions: those it was trained under, empty where nobody says. default: the condition of
    questions that name none, None where nobody says.
    """

    name: str
    conditions: tuple[str, ...]
    default: str | None


class Answerer(Protocol):
    """Answers questions. All of it runs on one event loop."""

    async def start(self) -> ChatModel:
        """Get ready. Raises UserError where that cannot work."""
        ...

    async def close(self) -> None:
        """Free everything."""
        ...

    def pieces(self, question: Question) -> AsyncIterator[Piece]:
        """An answer, without the space that begins it. Closing the iterator stops it. Raises ChatError."""
        ...

    async def prompt(self, question: Question) -> SentPrompt:
        """The prompt that `pieces` answers. Raises ChatError."""
        ...
