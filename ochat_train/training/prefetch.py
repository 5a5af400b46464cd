"""Makes micro-batches in a thread, ahead of the GPU."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Generic, TypeVar

from ochat_train.model.batch import PackedBatch
from ochat_train.training.step import Step

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
            self._ready.put((item, error))  # also for the next call
            raise error
        return item  # type: ignore[return-value]

    def close(self) -> None:
        """End the thread; items that are ready are discarded."""
        self._closed.set()
        self._thread.join()


class StepPrefetcher:
    """The steps of a run, each with its micro-batches, made ahead of time in one thread.

    depth: how many micro-batches may wait, whether they belong to one step or to several; so memory does not depend on
    how many micro-batches a step has. All micro-batches of a step must be taken before the next step is asked for.
    """

    def __init__(self, steps: Iterator[Step], *, depth: int) -> None:
        self._batches = Prefetcher(((step, batch) for step in steps for batch in step.micro_batches), depth=depth)
        self._left = 0  # micro-batches of the step that was given out last

    @property
    def waited_seconds(self) -> float:
        """How long steps and micro-batches had to be waited for so far."""
        return self._batches.waited_seconds

    def __iter__(self) -> StepPrefetcher:
        return self

    def __next__(self) -> Step:
        assert self._left == 0, f"{self._left} micro-batches of the step before were not taken"
        step, first = next(self._batches)
        self._left = len(step.packs)
        return replace(step, micro_batches=self._micro_batches(step, first))

    def _micro_batches(self, step: Step, batch: PackedBatch) -> Iterator[PackedBatch]:
        while True:  # one variable: the step's first micro-batch is let go with the second
            self._left -= 1
            yield batch
            if self._left == 0:
                return
            owner, batch = next(self._batches)
            assert owner is step, "a step has as many micro-batches as its packs say"

    def close(self) -> None:
        """End the thread; micro-batches that are ready are discarded."""
        self._batches.close()
