"""Plan and prepared dataset to packed micro-batches.

Shape letters: T tokens of a pack (constant), S sequences of a pack (constant, padded).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from data_pipeline.plan.plan import EpochPlan, TrainingPlan, deal
from data_pipeline.prepared.dataset import PreparedSplit
from ochat_train.model.batch import PackedBatch, PackShape, joined, pack_batch


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
