"""When a run validates, and the default interval: by hand, without data and without a model."""

from __future__ import annotations

import math

import pytest

from ochat_train.evaluation.schedule import ValidationSchedule, default_interval, time_ratio


def due_steps(*, has_held_out: bool, has_prompts: bool, save_every_steps: int = 4) -> list[int]:
    schedule = ValidationSchedule(every_steps=3, num_steps=10, has_held_out=has_held_out, has_prompts=has_prompts)
    due = [step for step in range(1, 11) if schedule.is_due(step, saves=step % save_every_steps == 0)]
    assert schedule.num_validations(save_every_steps=save_every_steps) == len(due)
    return due


@pytest.mark.parametrize("has_prompts", [True, False])
def test_held_out_conversations_are_also_scored_before_checkpoints(has_prompts: bool) -> None:
    assert due_steps(has_held_out=True, has_prompts=has_prompts) == [3, 4, 6, 8, 9, 10]


def test_prompts_alone_are_not_answered_for_a_checkpoint() -> None:
    assert due_steps(has_held_out=False, has_prompts=True) == [3, 6, 9, 10]


def test_nothing_to_look_at_is_never_due() -> None:
    assert due_steps(has_held_out=False, has_prompts=False) == []


def test_time_is_a_third_of_a_training_step_for_as_many_tokens() -> None:
    assert time_ratio(6, 3000, tokens_per_step=1000, num_steps=10) == pytest.approx(0.6)


def test_default_interval_is_ten_times_a_run_or_four_percent_of_the_time() -> None:
    def interval_of(held_out: int, samples: int, *, tokens_per_step: int = 1000, num_steps: int = 95) -> int:
        return default_interval(
            held_out_tokens=held_out, sample_tokens=samples, tokens_per_step=tokens_per_step, num_steps=num_steps
        )

    assert interval_of(0, 0) == 10
    assert interval_of(1000, 0) == 10
    interval = interval_of(10_000, 0)
    assert interval_of(4_000, 6_000) == interval_of(0, 10_000) == interval, "answers are also read"
    forward_seconds, step_seconds = 10_000 / 3, 1000
    assert forward_seconds / (interval * step_seconds) <= 0.04 < forward_seconds / ((interval - 1) * step_seconds)
    assert interval_of(0, 0, tokens_per_step=1, num_steps=3) == 1
    assert math.isfinite(interval)
