"""The steps of a run as values: from the plan and the prepared dataset to packed micro-batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from data_pipeline.plan.plan import EpochPlan, TrainingPlan, deal
from data_pipeline.prepared.dataset import PreparedSplit
from ochat_train.model.batch import PackedBatch, PackShape, joined, pack_batch
from ochat_train.training.step import Step


def run_shape(split: PreparedSplit, plan: TrainingPlan) -> PackShape:
    """The shape of all packs of a run."""
    return PackShape.holding(
        pack_length=plan.capacity,
        longest=int(split.num_tokens.max()),
        max_conversations=plan.max_conversations_per_pack,
    )


def run_steps_of_rank(
    split: PreparedSplit,
    plan: TrainingPlan,
    *,
    first_step: int,
    rank: int,
    num_ranks: int,
    packs_per_micro_batch: int,
    loss_denominator: str,
    num_classes: int,
    pin: bool,
) -> Iterator[Step]:
    """The steps of one rank, from a step (counted from 0) to the end of the run.

    The micro-batches of a step are made while they are walked. pin: in memory that a GPU can copy from by itself.
    """
    shape = run_shape(split, plan)
    for number in range(first_step, plan.num_steps):
        epoch, step_in_epoch = plan.locate(number)
        epoch_plan = plan.epoch(epoch)
        numbers = deal(epoch_plan, step_in_epoch, num_ranks=num_ranks)[rank]
        packs = grouped_packs(epoch_plan, numbers, packs_per_micro_batch=packs_per_micro_batch)
        yield Step(
            number=number,
            epoch=epoch,
            denominator=plan.denominator(number, loss_denominator),
            packs=packs,
            micro_batches=micro_batches(split, packs, shape=shape, pin=pin),
            squared_lengths=float(epoch_plan.attention_costs[epoch_plan.step_packs(step_in_epoch)].sum()),
            tokens_per_class=tokens_per_class(split, epoch_plan.step_rows(step_in_epoch), num_classes=num_classes),
        )


def grouped_packs(
    plan: EpochPlan, numbers: np.ndarray, *, packs_per_micro_batch: int = 1
) -> tuple[tuple[np.ndarray, ...], ...]:
    """The rows of packs by micro-batch and pack, as `Step.packs`.

    numbers: int64[packs], EMPTY_PACK for a pack of nothing but padding; packs_per_micro_batch divides how many.
    """
    groups = numbers.reshape(-1, packs_per_micro_batch)
    return tuple(tuple(plan.rows(int(number)) for number in group) for group in groups)


def micro_batches(
    split: PreparedSplit, packs: Sequence[Sequence[np.ndarray]], *, shape: PackShape, pin: bool = False
) -> Iterator[PackedBatch]:
    """The micro-batches of packs (as in `Step`), one at a time, on the CPU."""
    for rows_of_packs in packs:
        batch = joined([pack_batch(split, rows, shape) for rows in rows_of_packs])
        yield batch.pinned() if pin else batch


def tokens_per_class(split: PreparedSplit, rows: np.ndarray, *, num_classes: int) -> tuple[int, ...]:
    """All tokens of rows (int64) by class, prompts included."""
    tokens = np.bincount(split.class_id[rows], weights=split.num_tokens[rows], minlength=num_classes)
    return tuple(int(count) for count in tokens)
