"""Prepares batches in a thread, ahead of the GPU."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Prefetcher(Generic[T]):
    """Makes the items of an iterator ahead of time, in a thread. waited_seconds: how long `next` had to wait so far."""

    def __init__(self, items: Iterator[T], *, depth: int) -> None:
        self.waited_seconds = 0.0
        self._items = items
        self._ready: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(depth)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._work, name="prefetch", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        try:
            for item in self._items:
                if not self._put((item, None)):
                    return
            self._put((None, StopIteration()))
        except BaseException as error:  # it belongs to whoever asks for the next item
            self._put((None, error))

    def _put(self, entry: tuple[T | None, BaseException | None]) -> bool:
        while not self._closed.is_set():
            try:
                self._ready.put(entry, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def __iter__(self) -> Prefetcher[T]:
        return self

    def __next__(self) -> T:
        start = time.monotonic()
        item, error = self._ready.get()
        self.waited_seconds += time.monotonic() - start
        if error is not None:
            self._ready.put((item, error))  # for the next call, too
            raise error
        return item  # type: ignore[return-value]

    def close(self) -> None:
        """End the thread; items that are ready are forgotten."""
        self._closed.set()
        self._thread.join()
