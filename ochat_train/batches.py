"""Plan and prepared dataset to packed micro-batches.

Shape letters: T tokens of a pack (constant), S sequences of a pack (constant, padded).
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Generic, TypeVar

import numpy as np
import torch

from data_pipeline.dataset import PreparedSplit
from data_pipeline.plan import EpochPlan, TrainingPlan, deal

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class PackedBatch:
    """A micro-batch: one pack, or several one after the other. All shapes but `supervised_rows_N` are constant over a run.

    A pack holds whole conversations one after the other, then padding.
    input_ids_T: int64. position_ids_T: int64, from 0 in every conversation.
    target_ids_T: int64, the next token of the same conversation. target_weights_T: float32, 0 where there is no target.
    class_ids_T: int64, class of the conversation.
    supervised_rows_N: int64, the tokens whose target has a weight.
    cu_seqlens_S1: int32[S + 1], where sequences begin and end; the padding is a sequence of its own, and unused entries
    repeat T (empty sequences).
    num_tokens: tokens that are not padding.
    """

    input_ids_T: torch.Tensor
    position_ids_T: torch.Tensor
    target_ids_T: torch.Tensor
    target_weights_T: torch.Tensor
    class_ids_T: torch.Tensor
    supervised_rows_N: torch.Tensor
    cu_seqlens_S1: torch.Tensor
    num_tokens: int

    def to(self, device: torch.device) -> PackedBatch:
        """The same batch on another device; from pinned memory the copy does not wait."""
        tensors = {k: v.to(device, non_blocking=True) for k, v in vars(self).items() if isinstance(v, torch.Tensor)}
        return PackedBatch(**tensors, num_tokens=self.num_tokens)

    def pinned(self) -> PackedBatch:
        """The same batch in memory that a GPU can copy from by itself."""
        tensors = {k: v.pin_memory() for k, v in vars(self).items() if isinstance(v, torch.Tensor)}
        return PackedBatch(**tensors, num_tokens=self.num_tokens)


def pack_batch(split: PreparedSplit, rows: np.ndarray, *, pack_length: int, max_sequences: int) -> PackedBatch:
    """Lay the conversations `rows` into one pack. Targets are shifted here, and nowhere else.

    max_sequences: conversations of the fullest pack; the padding takes one sequence more.
    """
    input_ids = np.zeros(pack_length, dtype=np.int64)
    position_ids = np.zeros(pack_length, dtype=np.int64)
    target_ids = np.zeros(pack_length, dtype=np.int64)
    target_weights = np.zeros(pack_length, dtype=np.float32)
    class_ids = np.zeros(pack_length, dtype=np.int64)
    cu_seqlens = np.full(max_sequences + 2, pack_length, dtype=np.int32)
    cu_seqlens[0] = 0
    end = 0
    for number, row in enumerate(rows):
        tokens = split[int(row)]
        start, end = end, end + len(tokens.input_ids)
        input_ids[start:end] = tokens.input_ids
        position_ids[start:end] = np.arange(end - start)
        target_ids[start : end - 1] = tokens.input_ids[1:]
        target_weights[start : end - 1] = tokens.loss_weights[1:]
        class_ids[start:end] = split.class_id[row]
        cu_seqlens[number + 1] = end
    position_ids[end:] = np.arange(pack_length - end)
    return PackedBatch(
        input_ids_T=torch.from_numpy(input_ids),
        position_ids_T=torch.from_numpy(position_ids),
        target_ids_T=torch.from_numpy(target_ids),
        target_weights_T=torch.from_numpy(target_weights),
        class_ids_T=torch.from_numpy(class_ids),
        supervised_rows_N=torch.from_numpy(np.flatnonzero(target_weights)),
        cu_seqlens_S1=torch.from_numpy(cu_seqlens),
        num_tokens=end,
    )


def joined(packs: Sequence[PackedBatch]) -> PackedBatch:
    """Several packs as one micro-batch; borders of conversations and of padding stay."""
    if len(packs) == 1:
        return packs[0]
    length = len(packs[0].input_ids_T)
    starts = range(0, length * len(packs), length)
    same = [field.name for field in fields(PackedBatch) if field.name.endswith("_T")]
    borders = [pack.cu_seqlens_S1[:-1] + start for pack, start in zip(packs, starts, strict=True)]
    return PackedBatch(
        **{name: torch.cat([getattr(pack, name) for pack in packs]) for name in same},
        supervised_rows_N=torch.cat([pack.supervised_rows_N + start for pack, start in zip(packs, starts, strict=True)]),
        cu_seqlens_S1=torch.cat((*borders, packs[-1].cu_seqlens_S1[-1:] + starts[-1])),
        num_tokens=sum(pack.num_tokens for pack in packs),
    )


def micro_batches(
    split: PreparedSplit, plan: EpochPlan, packs: np.ndarray, *, max_sequences: int, packs_per_micro_batch: int = 1
) -> Iterator[PackedBatch]:
    """The micro-batches of `packs` (int64, EMPTY_PACK for a pack of nothing but padding), one at a time, on the CPU.

    packs_per_micro_batch: divides the number of packs.
    """
    for numbers in packs.reshape(-1, packs_per_micro_batch):
        rows = [plan.rows(int(number)) for number in numbers]
        yield joined([pack_batch(split, row, pack_length=plan.capacity, max_sequences=max_sequences) for row in rows])


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
    for step in range(first_step, plan.num_steps):
        epoch, step_in_epoch = plan.locate(step)
        epoch_plan = plan.epoch(epoch)
        packs = deal(epoch_plan, step_in_epoch, num_ranks=num_ranks)[rank]
        for batch in micro_batches(
            split, epoch_plan, packs,
            max_sequences=plan.max_conversations_per_pack, packs_per_micro_batch=packs_per_micro_batch,
        ):  # fmt: skip
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
