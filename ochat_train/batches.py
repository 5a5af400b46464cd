"""Plan and prepared dataset to packed micro-batches.

Shape letters: T tokens of a pack (constant), S sequences of a pack (constant, padded).
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Generic, TypeVar

import numpy as np
import torch

from data_pipeline.plan.plan import EpochPlan, TrainingPlan, deal
from data_pipeline.prepared.dataset import PreparedSplit

T = TypeVar("T")
_SEQLEN_MULTIPLE = 128


@dataclass(frozen=True, kw_only=True)
class PackShape:
    """Sizes that all packs of a run share, so that compiled code sees static shapes.

    max_seqlen: no sequence is longer. FlashAttention-2 starts a block for every 64 to 128 tokens of it in every
    sequence, so that a bound of the whole pack would cost more than the attention itself where conversations are short.
    max_sequences: of a pack, padding included.
    """

    pack_length: int
    max_seqlen: int
    max_sequences: int

    @classmethod
    def holding(cls, *, pack_length: int, longest: int, max_conversations: int) -> PackShape:
        """For packs of at most `max_conversations` conversations of at most `longest` tokens, then padding."""
        max_seqlen = min(pack_length, -(-longest // _SEQLEN_MULTIPLE) * _SEQLEN_MULTIPLE)
        padding = -(-pack_length // max_seqlen)  # a pack may be empty
        return cls(pack_length=pack_length, max_seqlen=max_seqlen, max_sequences=max_conversations + padding)


@dataclass(frozen=True, kw_only=True)
class PackedBatch:
    """A micro-batch: one pack, or several one after the other. All shapes but `supervised_rows_N` are constant over a
    run.

    A pack holds whole conversations one after the other, then padding.
    input_ids_T: int64. position_ids_T: int64, from 0 in every conversation.
    target_ids_T: int64, the next token of the same conversation. target_weights_T: float32, 0 where there is no target.
    class_ids_T: int64, class of the conversation.
    supervised_rows_N: int64, the tokens whose target has a weight.
    cu_seqlens_S1: int32[S + 1], where sequences begin and end; the padding is in sequences of its own, and unused
    entries repeat T (empty sequences).
    max_seqlen: no sequence is longer, constant over a run. num_tokens: tokens that are not padding.
    """

    input_ids_T: torch.Tensor
    position_ids_T: torch.Tensor
    target_ids_T: torch.Tensor
    target_weights_T: torch.Tensor
    class_ids_T: torch.Tensor
    supervised_rows_N: torch.Tensor
    cu_seqlens_S1: torch.Tensor
    max_seqlen: int
    num_tokens: int

    def to(self, device: torch.device) -> PackedBatch:
        """The same batch on another device; from pinned memory the copy does not wait."""
        tensors: dict[str, Any] = {
            name: value.to(device, non_blocking=True)
            for name, value in vars(self).items()
            if isinstance(value, torch.Tensor)
        }
        return replace(self, **tensors)

    def pinned(self) -> PackedBatch:
        """The same batch in memory that a GPU can copy from by itself."""
        tensors: dict[str, Any] = {
            name: value.pin_memory() for name, value in vars(self).items() if isinstance(value, torch.Tensor)
        }
        return replace(self, **tensors)


def pack_batch(split: PreparedSplit, rows: np.ndarray, shape: PackShape) -> PackedBatch:
    """Lay the conversations `rows` into one pack. Targets are shifted here, and nowhere else."""
    pack_length = shape.pack_length
    input_ids = np.zeros(pack_length, dtype=np.int64)
    position_ids = np.zeros(pack_length, dtype=np.int64)
    target_ids = np.zeros(pack_length, dtype=np.int64)
    target_weights = np.zeros(pack_length, dtype=np.float32)
    class_ids = np.zeros(pack_length, dtype=np.int64)
    cu_seqlens = np.full(shape.max_sequences + 1, pack_length, dtype=np.int32)
    cu_seqlens[0] = 0
    end = 0
    for number, row in enumerate(rows, 1):
        tokens = split[int(row)]
        start, end = end, end + len(tokens.input_ids)
        input_ids[start:end] = tokens.input_ids
        position_ids[start:end] = np.arange(end - start)
        target_ids[start : end - 1] = tokens.input_ids[1:]
        target_weights[start : end - 1] = tokens.loss_weights[1:]
        class_ids[start:end] = split.class_id[row]
        cu_seqlens[number] = end
    padding = np.arange(end, pack_length, shape.max_seqlen)
    cu_seqlens[len(rows) : len(rows) + len(padding)] = padding
    position_ids[end:] = np.arange(pack_length - end) % shape.max_seqlen
    return PackedBatch(
        input_ids_T=torch.from_numpy(input_ids),
        position_ids_T=torch.from_numpy(position_ids),
        target_ids_T=torch.from_numpy(target_ids),
        target_weights_T=torch.from_numpy(target_weights),
        class_ids_T=torch.from_numpy(class_ids),
        supervised_rows_N=torch.from_numpy(np.flatnonzero(target_weights)),
        cu_seqlens_S1=torch.from_numpy(cu_seqlens),
        max_seqlen=shape.max_seqlen,
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
        supervised_rows_N=torch.cat(
            [pack.supervised_rows_N + start for pack, start in zip(packs, starts, strict=True)]
        ),
        cu_seqlens_S1=torch.cat((*borders, packs[-1].cu_seqlens_S1[-1:] + starts[-1])),
        max_seqlen=packs[0].max_seqlen,
        num_tokens=sum(pack.num_tokens for pack in packs),
    )


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
