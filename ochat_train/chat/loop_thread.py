"""An event loop in its own thread, for a program that waits for lines in its main thread.

The loop runs all the time, so engines that watch their processes or hold connections open do so between questions.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

from ochat_train.system.stop_signals import Terminated

T = TypeVar("T")


class LoopThread:
    """The loop, from `with LoopThread() as loop` to the end of the block."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="chat", daemon=True)

    def __enter__(self) -> LoopThread:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.run(self._loop.shutdown_asyncgens())
        self.run(self._loop.shutdown_default_executor())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run something to its end. Ctrl-C cancels it, and this call waits until it has cleaned up: what it then
        returns is returned, and KeyboardInterrupt is raised if it was cancelled.
        """
        ended: concurrent.futures.Future[T] = concurrent.futures.Future()
        task: list[asyncio.Task[T]] = []

        def begin() -> None:
            task.append(self._loop.create_task(work))
            task[0].add_done_callback(lambda done: _hand_over(done, ended))

        self._loop.call_soon_threadsafe(begin)
        while True:
            try:
                return ended.result()
            except KeyboardInterrupt:
                if ended.done():
                    raise
                self._loop.call_soon_threadsafe(lambda: task[0].cancel())
            except Terminated:  # the same, and then the program ends, whatever the work returned
                if not ended.done():
                    self._loop.call_soon_threadsafe(lambda: task[0].cancel())
                    concurrent.futures.wait([ended])
                raise


def _hand_over(done: asyncio.Task[T], ended: concurrent.futures.Future[T]) -> None:
    if done.cancelled():
        ended.set_exception(KeyboardInterrupt())
    elif (error := done.exception()) is not None:
        ended.set_exception(error)
    else:
        ended.set_result(done.result())
