"""Work that some ranks do in a thread while all of them do something else, and the wait for its end.

The wait is made of short collectives, so that work of an hour is not taken for a rank that hangs. What counts is that
it makes progress.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Generic, TypeVar

from data_pipeline.errors import UserError
from ochat_train.distributed.ranks import Ranks, gathered

T = TypeVar("T")

_TURN_SECONDS = 5.0  # of waiting between two collectives


class Background(Generic[T]):
    """A function that runs in a thread. The thread does not keep a process that ends from ending.

    work: called with a function that it calls whenever it has come further. timeout_seconds: how long it may take
    without coming further; then the result is a UserError. place: what to name in that error.
    """

    def __init__(self, work: Callable[[Callable[[int], None]], T], *, place: str, timeout_seconds: float) -> None:
        self._place, self._timeout = place, timeout_seconds
        self._progressed = time.monotonic()
        self._future: Future[T] = Future()
        threading.Thread(target=self._run, args=(work,), name="background", daemon=True).start()

    def _run(self, work: Callable[[Callable[[int], None]], T]) -> None:
        try:
            self._future.set_result(work(self._note_progress))
        except BaseException as error:
            self._future.set_exception(error)

    def _note_progress(self, amount: int) -> None:
        self._progressed = time.monotonic()

    def wait(self, seconds: float) -> bool:
        """Wait at most so long; whether the work is done, has failed, or has not come further for too long."""
        patience = max(0.0, self._progressed + self._timeout - time.monotonic())
        is_done = bool(wait([self._future], min(seconds, patience)).done)
        return is_done or time.monotonic() >= self._progressed + self._timeout

    def result(self) -> T:
        """What the work returned. Raises what it raised, and UserError where it is still at work."""
        if not self._future.done():
            problem = f"could not be read on for {self._timeout:g} s (train.hang_timeout_seconds)"
            raise UserError(self._place, problem, "look at the disk that it is on")
        return self._future.result()


def wait_for_all(ranks: Ranks, work: Background[T] | None, *, most_seconds: float | None = None) -> bool:
    """Wait until the work of all ranks has ended, at most so long; whether it has. Every rank calls it together.

    work: of this rank; None where it has none.
    """
    end = None if most_seconds is None else time.monotonic() + most_seconds
    while True:
        turn = _TURN_SECONDS if end is None else max(0.0, min(_TURN_SECONDS, end - time.monotonic()))
        is_done = work is None or work.wait(turn)
        is_late = end is not None and time.monotonic() >= end
        found = gathered(ranks, (is_done, is_late))
        if all(done for done, _ in found):
            return True
        if any(late for _, late in found):
            return False
