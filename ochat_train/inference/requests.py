"""One answer on its way through an engine in this process: from the thread that computes to the reader's event loop."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from ochat_train.inference.choose_token import TokenChooser
from ochat_train.inference.engine import AnswerSettings, EngineError
from ochat_train.inference.pieces import IdLogprob

_numbers = itertools.count()


@dataclass(frozen=True, kw_only=True)
class NewTokens:
    """Tokens that were added to an answer. rows: one for each, or none."""

    ids: Sequence[int]
    rows: Sequence[IdLogprob] = ()


@dataclass(kw_only=True, eq=False)
class Request:
    """A prompt and how it is answered. Made on the event loop that reads the answer.

    stop_ids: tokens that end it. cancelled: set by the reader; nothing more is computed then.
    """

    prompt_ids: list[int]
    settings: AnswerSettings
    stop_ids: frozenset[int]
    chooser: TokenChooser
    cancelled: bool = False
    name: str = field(default_factory=lambda: f"answer-{next(_numbers)}")
    events: asyncio.Queue[NewTokens | EngineError] = field(default_factory=asyncio.Queue)
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)

    def deliver(self, event: NewTokens | EngineError) -> None:
        """Hand over from any thread. Nothing happens where the reader's loop has ended."""
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self.events.put_nowait, event)


class Batcher(Protocol):
    """Computes many answers at once in its own thread."""

    @property
    def how(self) -> str:
        """In a few words, for the line at the start."""
        ...

    def start(self) -> None:
        """Begin; blocks until requests are taken."""
        ...

    def close(self) -> None:
        """End the thread and free memory; blocks. May be called twice."""
        ...

    def failure(self) -> str | None:
        """Why it computes no more; None while it does."""
        ...

    def submit(self, request: Request) -> None:
        """Take a request. Called on its event loop. Raises EngineUnavailable."""
        ...

    def cancel(self, request: Request) -> None:
        """End a request whose reader has gone, or has all it wants. Called on its event loop."""
        ...
