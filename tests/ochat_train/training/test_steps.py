"""The steps that a rank takes: one value each, with as many micro-batches as the engine waits for."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data_pipeline.plan.plan import TrainingPlan, deal
from data_pipeline.prepared.dataset import PreparedSplit
from ochat_train.model.batch import PackedBatch
from ochat_train.planning.steps import training_plan
from ochat_train.recipe.load import load_recipe
from ochat_train.recipe.preparation import prepare_recipe
from ochat_train.recipe.recipe import Recipe
from ochat_train.training.batches import run_steps_of_rank
from ochat_train.training.engine import deepspeed_config
from ochat_train.training.prefetch import StepPrefetcher
from ochat_train.training.step import Step
from tests.support.small_recipe import write_small_recipe

NUM_CLASSES = 2


@pytest.fixture(scope="module")
def prepared(
    tmp_path_factory: pytest.TempPathFactory, small_tokenizer_dir: Path
) -> tuple[Recipe, PreparedSplit, TrainingPlan]:
    recipe = load_recipe(write_small_recipe(tmp_path_factory.mktemp("steps"), small_tokenizer_dir))
    prepare_recipe(recipe, num_workers=1, progress=lambda rows: None)
    split = PreparedSplit(Path(recipe.data.prepared_dir), "train")
    return recipe, split, training_plan(recipe, split)


def steps_of(split: PreparedSplit, plan: TrainingPlan, **changes: Any) -> Iterator[Step]:
    arguments: dict[str, Any] = {"first_step": 0, "rank": 0, "num_ranks": 1, "packs_per_micro_batch": 1}
    arguments |= {"loss_denominator": "epoch", "num_classes": NUM_CLASSES, "pin": False, **changes}
    return run_steps_of_rank(split, plan, **arguments)


@pytest.mark.parametrize(("num_ranks", "packs_per_micro_batch"), [(1, 1), (1, 2), (1, 4), (2, 1), (2, 2), (3, 1)])
def test_a_step_has_as_many_micro_batches_as_the_engine_waits_for(
    num_ranks: int, packs_per_micro_batch: int, prepared: tuple[Recipe, PreparedSplit, TrainingPlan]
) -> None:
    """In every step, even the last one of an epoch, which may have fewer packs."""
    recipe, split, plan = prepared
    train = recipe.train.model_copy(update={"packs_per_micro_batch": packs_per_micro_batch})
    config = deepspeed_config(
        recipe.model_copy(update={"train": train}),
        num_ranks=num_ranks,
        device=torch.device("cpu"),
        layer_elements=1,
        num_trained=1,
    )
    for rank in range(num_ranks):
        steps = list(steps_of(split, plan, rank=rank, num_ranks=num_ranks, packs_per_micro_batch=packs_per_micro_batch))
        assert [step.number for step in steps] == list(range(plan.num_steps))
        for step in steps:
            assert len(step.packs) == config["gradient_accumulation_steps"]
            assert len(list(step.micro_batches)) == config["gradient_accumulation_steps"]


@pytest.mark.parametrize("loss_denominator", ["epoch", "step"])
def test_a_step_is_that_of_the_plan(
    loss_denominator: str, prepared: tuple[Recipe, PreparedSplit, TrainingPlan]
) -> None:
    """Two ranks, two packs a micro-batch, resumed in the middle: packs, denominator and sums over all ranks."""
    _, split, plan = prepared
    first = plan.steps_per_epoch[0] - 1  # the last step of an epoch, and all of the next
    both = [
        list(
            steps_of(
                split,
                plan,
                first_step=first,
                rank=rank,
                num_ranks=2,
                packs_per_micro_batch=2,
                loss_denominator=loss_denominator,
            )
        )
        for rank in range(2)
    ]
    for number, of_ranks in enumerate(zip(*both, strict=True), first):
        epoch, step_in_epoch = plan.locate(number)
        epoch_plan = plan.epoch(epoch)
        dealt = deal(epoch_plan, step_in_epoch, num_ranks=2)
        rows = epoch_plan.step_rows(step_in_epoch)
        for step, numbers in zip(of_ranks, dealt, strict=True):
            assert (step.number, step.epoch) == (number, epoch)
            assert step.denominator == plan.denominator(number, loss_denominator)
            assert step.squared_lengths == float((split.num_tokens[rows].astype(np.float64) ** 2).sum())
            assert sum(step.tokens_per_class) == split.num_tokens[rows].sum()
            assert step.tokens_per_class[1] == split.num_tokens[rows[split.class_id[rows] == 1]].sum()
            packs = [rows_of_pack for group in step.packs for rows_of_pack in group]
            assert [list(found) for found in packs] == [list(epoch_plan.rows(int(number))) for number in numbers]
            for batch, group in zip(step.micro_batches, step.packs, strict=True):
                assert batch.num_tokens == split.num_tokens[np.concatenate(group)].sum()
        taken = np.concatenate([rows_of_pack for step in of_ranks for group in step.packs for rows_of_pack in group])
        assert sorted(taken) == sorted(rows)


def test_prefetched_steps_are_the_same_and_few_micro_batches_wait(
    prepared: tuple[Recipe, PreparedSplit, TrainingPlan],
) -> None:
    """However many micro-batches a step has; the thread ends with `close`."""
    _, split, plan = prepared
    made: list[PackedBatch] = []

    def counted(step: Step) -> Iterator[PackedBatch]:
        for batch in step.micro_batches:
            made.append(batch)
            yield batch

    planned = (replace(step, micro_batches=counted(step)) for step in steps_of(split, plan))
    before = set(threading.enumerate())
    prefetched = StepPrefetcher(planned, depth=2)
    taken = 0
    for found, expected in zip(prefetched, steps_of(split, plan), strict=True):
        assert found.number == expected.number
        for batch, truth in zip(found.micro_batches, expected.micro_batches, strict=True):
            taken += 1
            time.sleep(0.005)  # the thread has time to run too far ahead
            assert len(made) <= taken + 3, "two wait, one is in hand"
            assert torch.equal(batch.input_ids_T, truth.input_ids_T)
    assert taken == plan.num_steps * 4
    prefetched.close()
    assert not set(threading.enumerate()) - before


def test_a_micro_batch_is_let_go_when_the_next_is_taken(prepared: tuple[Recipe, PreparedSplit, TrainingPlan]) -> None:
    """The first of a step as well: none stays in pinned memory until the step ends."""
    _, split, plan = prepared
    prefetched = StepPrefetcher(steps_of(split, plan), depth=1)
    step = next(prefetched)
    taken = [weakref.ref(next(step.micro_batches)) for _ in step.packs]
    assert [batch() is None for batch in taken] == [True, True, True, False]
    prefetched.close()


def test_a_step_is_not_given_out_before_the_one_before_is_taken(
    prepared: tuple[Recipe, PreparedSplit, TrainingPlan],
) -> None:
    _, split, plan = prepared
    prefetched = StepPrefetcher(steps_of(split, plan), depth=8)
    next(next(prefetched).micro_batches)
    with pytest.raises(AssertionError, match="3 micro-batches of the step before were not taken"):
        next(prefetched)
    prefetched.close()
