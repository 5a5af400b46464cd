"""One request's answers: asked of the engine, counted, and freed when the client leaves."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Coroutine, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar, cast

from starlette.types import Receive

from ochat_train.inference.answers import message_pieces
from ochat_train.inference.engine import (
    AnswerSettings,
    Engine,
    EngineBusy,
    EngineError,
    EngineRefused,
    EngineUnavailable,
    Piece,
    TokenLogprob,
    ended,
)
from ochat_train.serving.errors import ApiError, bad_request, too_many, unavailable

T = TypeVar("T")


class ClientLeft(Exception):
    """The client has closed its connection; nobody reads the answer."""


@dataclass
class Answer:
    """One answer so far. Times are of `time.perf_counter`."""

    text: str = ""
    num_tokens: int = 0
    finish: str | None = None
    logprobs: list[TokenLogprob] = field(default_factory=list)
    first_token_at: float | None = None
    last_token_at: float | None = None

    def add(self, piece: Piece, *, keeps_text: bool) -> None:
        """Count a piece. keeps_text: whether text and log-probabilities are needed again."""
        if piece.num_tokens:
            self.last_token_at = time.perf_counter()
            self.first_token_at = self.first_token_at or self.last_token_at
        self.num_tokens += piece.num_tokens
        self.finish = piece.finish or self.finish
        if keeps_text:
            self.text += piece.text
            self.logprobs += piece.logprobs


async def pieces(engine: Engine, prompt_ids: Sequence[int], settings: AnswerSettings) -> AsyncGenerator[Piece, None]:
    """The pieces of an answer without the space that begins it. The computation ends with this iterator.

    Raises ApiError where the engine fails, without its words; the error of the engine is its cause.
    """
    try:
        async with aclosing(cast(Any, message_pieces(engine.stream(prompt_ids, settings)))) as stream:
            async for piece in stream:
                yield piece
                if piece.finish is not None:
                    return
    except EngineUnavailable as error:
        raise engine_unavailable() from error
    except EngineBusy as error:
        raise too_many("the engine has as many requests as it takes; ask again later", retry_after_seconds=1) from error
    except EngineRefused as error:
        # all else was checked before; what a schema may hold is known to the engine alone
        raise (engine_failed() if settings.response_format is None else _wrong_format()) from error
    except EngineError as error:
        raise engine_failed() from error
    raise engine_failed() from EngineError("the answer ended without a reason")


def engine_unavailable() -> ApiError:
    """The engine is starting, restarting or gone."""
    return unavailable(
        "the engine is not running at the moment; ask again later", code="engine_unavailable", retry_after_seconds=5
    )


def _wrong_format() -> ApiError:
    text = "the engine refuses this `response_format`: its schema is wrong, or holds what the engine does not support"
    return bad_request(text, param="response_format")


def engine_failed() -> ApiError:
    """The engine failed at one answer."""
    return ApiError(500, "the engine failed at this answer", code="engine_failed")


def settings_of_choice(settings: AnswerSettings, number: int) -> AnswerSettings:
    """Settings of the i-th of several answers: the seeds follow each other, in 64 bits with a sign."""
    if settings.seed is None or number == 0:
        return settings
    return replace(settings, seed=(settings.seed + number + 2**63) % 2**64 - 2**63)


async def together(work: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """All results in order. The first failure ends the others, and they have ended when this returns."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        await ended(tasks)


async def unless_left(receive: Receive, work: Coroutine[Any, Any, T], *, seconds: float) -> T:
    """The result of `work`, which is cancelled when the client leaves or the time is over; raises ClientLeft then.

    The request's body must have been read: what is received now can only be that the client left.
    """
    task, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait((task, leaving), return_when=asyncio.FIRST_COMPLETED, timeout=seconds)
        if task.done():
            return task.result()
        raise ClientLeft
    finally:
        await ended((task, leaving))


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
