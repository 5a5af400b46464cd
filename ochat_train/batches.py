"""Plan and prepared dataset to packed micro-batches.

Shape letters: T tokens of a pack (constant), S sequences of a pack (constant, padded).
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from typing import Generic, TypeVar

import numpy as np

from data_pipeline.plan.plan import EpochPlan, TrainingPlan, deal
from data_pipeline.prepared.dataset import PreparedSplit
from ochat_train.model.batch import PackedBatch, PackShape, joined, pack_batch

T = TypeVar("T")


def run_shape(split: PreparedSplit, plan: TrainingPlan) -> PackShape:
    """The shape of all packs of a run."""
    return PackShape.holding(
        pack_length=plan.capacity,
        longest=int(split.num_tokens.max()),
        max_conversations=plan.max_conversations_per_pack,
    )


def micro_batches(
    split: PreparedSplit, plan: EpochPlan, packs: np.ndarray, *, shape: PackShape, packs_per_micro_batch: int = 1
) -> Iterator[PackedBatch]:
    """The micro-batches of `packs` (int64, EMPTY_PACK for a pack of nothing but padding), one at a time, on the CPU.

    packs_per_micro_batch: divides the number of packs.
    """
    for numbers in packs.reshape(-1, packs_per_micro_batch):
        rows = [plan.rows(int(number)) for number in numbers]
        yield joined([pack_batch(split, row, shape) for row in rows])


def run_micro_batches(
    split: PreparedSplit,
    plan: TrainingPlan,
    *,
    first_step: int,
    rank: int,
    num_ranks: int,
    packs_per_micro_batch: int,
    pin: bool,
) -> Iterator[PackedBatch]:
    """All micro-batches of one rank from a step (0-based) to the end of the run; pin: in pinned memory."""
    shape = run_shape(split, plan)
    for step in range(first_step, plan.num_steps):
        epoch, step_in_epoch = plan.locate(step)
        epoch_plan = plan.epoch(epoch)
        packs = deal(epoch_plan, step_in_epoch, num_ranks=num_ranks)[rank]
        for batch in micro_batches(split, epoch_plan, packs, shape=shape, packs_per_micro_batch=packs_per_micro_batch):
            yield batch.pinned() if pin else batch


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
