"""When a run validates, and what that costs. Pure functions."""

from __future__ import annotations

import math
from dataclasses import dataclass

_VALIDATIONS = 10  # a run, by default
_LARGEST_TIME_RATIO = 0.04  # of the training time, by default
MOST_BENCHMARK_TIME_RATIO = 0.05  # of the training time, by default
_COST_RATIO = 3  # a forward and backward pass takes as long as three forward passes


@dataclass(frozen=True, kw_only=True)
class ValidationSchedule:
    """When to validate: every `every_steps` steps, after the last one, and before each checkpoint.

    It does not depend on the number of ranks, so that a run resumed on another number validates after the same steps.
    num_steps: of the run. has_held_out: whether there are held-out conversations. has_prompts: whether there are
    prompts to answer. With neither, no step is due.
    """

    every_steps: int
    num_steps: int
    has_held_out: bool
    has_prompts: bool

    def is_due(self, step: int, *, saves: bool) -> bool:
        """Whether to validate after step `step` (from 1). saves: whether a checkpoint follows, to record the loss."""
        if not (self.has_held_out or self.has_prompts):
            return False
        is_regular = step % self.every_steps == 0 or step == self.num_steps
        return is_regular or (saves and self.has_held_out)

    def num_validations(self, *, save_every_steps: int) -> int:
        """Validations of the whole run, with a checkpoint every `save_every_steps` steps."""
        steps = range(1, self.num_steps + 1)
        return sum(self.is_due(step, saves=step % save_every_steps == 0) for step in steps)


def time_ratio(num_validations: int, tokens: int, *, tokens_per_step: int, num_steps: int) -> float:
    """Time of validations that read `tokens` tokens each, relative to the time of the training steps.

    Answers to prompts are not counted.
    """
    return num_validations * tokens / (_COST_RATIO * tokens_per_step * num_steps)


def default_interval(*, held_out_tokens: int, sample_tokens: int, tokens_per_step: int, num_steps: int) -> int:
    """Steps between validations: ten in a run, or as many as take 4 % of the training time on one GPU.

    held_out_tokens, sample_tokens: that one validation reads, at most. Several ranks share them, so they take less.
    """
    affordable = (held_out_tokens + sample_tokens) / (_COST_RATIO * _LARGEST_TIME_RATIO * tokens_per_step)
    return max(1, math.ceil(max(num_steps / _VALIDATIONS, affordable)))


def affordable_answers(*, tokens_of_one: float, tokens_per_step: int, every_steps: int, num_benchmarks: int) -> int:
    """Questions of a benchmark that take its part of 5 % of the training time on one GPU, at least one.

    tokens_of_one: that the forward passes of one question read, at most, under all its conditions. num_benchmarks: that
    share the time. Several ranks share the questions, so they take less of it.
    """
    affordable = MOST_BENCHMARK_TIME_RATIO * _COST_RATIO * tokens_per_step * every_steps / num_benchmarks
    return max(1, int(affordable / tokens_of_one))
