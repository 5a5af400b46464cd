"""The events of one streamed response, on their way to a client that may read slowly."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Generator
from types import coroutine
from typing import Any

from starlette.types import Send

from ochat_train.inference.engine import Piece, joined
from ochat_train.serving.errors import ApiError
from ochat_train.serving.events import Events

_START = {
    "type": "http.response.start",
    "status": 200,
    "headers": [
        (b"content-type", b"text/event-stream; charset=utf-8"),
        (b"cache-control", b"no-cache"),
        (b"x-accel-buffering", b"no"),  # nginx would hold events back
    ],
}


class StreamSender:
    """Sends the pieces of several answers. The response begins with the first piece, so that what fails before it has
    its own status.

    Whoever brings a piece sends it, and does not wait: where the client reads slowly, a task waits for it, and pieces
    that come in the meantime are kept (at most the answers themselves). A task that is woken for every piece would cost
    as much as all else that is done for it.
    """

    def __init__(self, send: Send, events: Events, *, num_answers: int, joins: bool) -> None:
        """joins: whether pieces that have waited together become one event. `has_begun`: whether anything was sent."""
        self._send, self._events, self._joins = send, events, joins
        self._kept: dict[int, list[Piece]] = {}
        self._num_answers = self._num_open = num_answers
        self._error: ApiError | None = None
        self.has_begun = False
        self._slow: asyncio.Task[None] | None = None
        self._all_sent: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def put(self, number: int, piece: Piece) -> None:
        """The next piece of an answer."""
        self._num_open -= piece.finish is not None
        self._kept.setdefault(number, []).append(piece)
        if self._slow is None and self._error is None:
            self._begin_sending()

    def fail(self, error: ApiError) -> None:
        """The error that ends all answers; the pieces before it are sent."""
        self._error = self._error or error
        if self._slow is None:
            self._end()

    async def sent(self) -> None:
        """Wait until the last piece has been sent. Raises the error of `fail`."""
        try:
            await self._all_sent
        finally:
            if self._slow is not None:
                self._slow.cancel()
                await asyncio.gather(self._slow, return_exceptions=True)

    def _begin_sending(self) -> None:
        sending = self._send_kept()
        try:
            waits_for = sending.send(None)
        except StopIteration:
            self._end()
        except Exception as error:  # for whoever waits for the response, and not for the engine
            self._end(error)
        else:
            self._slow = asyncio.ensure_future(self._send_slowly(sending, waits_for))
            self._slow.add_done_callback(lambda task: sending.close())  # where it was cancelled before it began

    async def _send_slowly(self, sending: Coroutine[Any, Any, None], waits_for: Any) -> None:
        failure = None
        try:
            await _rest(sending, waits_for)
        except Exception as error:
            failure = error
        self._slow = None
        self._end(failure)

    async def _send_kept(self) -> None:
        while self._kept:
            kept, self._kept = self._kept, {}
            data = b""
            if not self.has_begun:
                self.has_begun = True
                await self._send(_START)
                data = b"".join(map(self._events.first, range(self._num_answers)))
            for number, pieces in kept.items():
                for piece in [joined(pieces)] if self._joins else pieces:
                    data += self._events.of(number, piece)
            if data:
                await self._send({"type": "http.response.body", "body": data, "more_body": True})

    def _end(self, error: Exception | None = None) -> None:
        """Let the response end where nothing is left to send."""
        error = error or self._error
        if self._all_sent.done() or (error is None and self._num_open):
            return
        if error is None:
            self._all_sent.set_result(None)
        else:
            self._all_sent.set_exception(error)
            self._all_sent.exception()  # nobody reads it where the client leaves in the same moment


@coroutine
def _rest(begun: Coroutine[Any, Any, None], waits_for: Any) -> Generator[Any, Any, None]:
    """What is left of a coroutine that was begun without a task and waits for a future, as `await` would do it."""
    try:
        while True:
            try:
                value = yield waits_for
            except BaseException as error:
                waits_for = begun.throw(error)
            else:
                waits_for = begun.send(value)
    except StopIteration:
        return
