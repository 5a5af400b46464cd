"""How many answers are computed at once, and who waits."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from ochat_train.serving.errors import too_many, unavailable


@dataclass
class Admission:
    """First come, first served. max_concurrent: answers at once; max_queue: requests that wait.

    A request for several answers waits until all of them have a place, and nobody overtakes it.
    """

    max_concurrent: int
    max_queue: int
    num_running: int = 0
    _waiting: deque[tuple[int, asyncio.Future[None]]] = field(default_factory=deque)  # number of answers, turn

    @property
    def num_waiting(self) -> int:
        """Requests in the queue."""
        return len(self._waiting)

    @asynccontextmanager
    async def places(self, num_answers: int, *, seconds: float) -> AsyncIterator[None]:
        """Places for the answers of one request, waited for at most this long. Raises ApiError: 429 where the queue is
        full, 503 where the time is over.
        """
        assert num_answers <= self.max_concurrent, "would wait for ever"
        await self._enter(num_answers, seconds)
        try:
            yield
        finally:
            self.num_running -= num_answers
            self._admit()

    async def _enter(self, num_answers: int, seconds: float) -> None:
        if not self._waiting and self.num_running + num_answers <= self.max_concurrent:
            self.num_running += num_answers
            return
        if len(self._waiting) >= self.max_queue:
            raise too_many("the server has as many requests as it takes; ask again later", retry_after_seconds=1)
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting = (num_answers, turn)
        self._waiting.append(waiting)
        try:
            async with asyncio.timeout(seconds):
                await turn
        except BaseException as error:
            if waiting in self._waiting:
                self._waiting.remove(waiting)
            elif not turn.cancelled():  # it leaves in the moment in which its turn came
                self.num_running -= num_answers
            self._admit()
            if isinstance(error, TimeoutError):
                text = "the request waited until its time was over"
                raise unavailable(text, code="timeout", retry_after_seconds=5) from None
            raise

    def _admit(self) -> None:
        """Give places to those who wait, in order."""
        while self._waiting:
            num_answers, turn = self._waiting[0]
            if not turn.done():  # otherwise it is leaving
                if self.num_running + num_answers > self.max_concurrent:
                    break
                self.num_running += num_answers
                turn.set_result(None)
            self._waiting.popleft()
