"""When a run validates, and what that costs. Pure functions."""

from __future__ import annotations

import math

_VALIDATIONS = 10  # a run, by default


_LARGEST_TIME_RATIO = 0.04  # of the training time, by default


_COST_RATIO = 3  # a forward and backward pass takes as long as three forward passes


def time_ratio(num_validations: int, tokens: int, *, tokens_per_step: int, num_steps: int) -> float:
    """Time of validations that read so many tokens each, as a share of the time of the steps; answers are not
    counted.
    """
    return num_validations * tokens / (_COST_RATIO * tokens_per_step * num_steps)


def default_interval(*, held_out_tokens: int, sample_tokens: int, tokens_per_step: int, num_steps: int) -> int:
    """Steps between validations that read so many tokens each: ten in a run, or as many as 4 % of the time on one GPU
    allow.

    Several ranks share held-out conversations, but each of them gives all answers (`samples.Sampler`).
    """
    affordable = (held_out_tokens + sample_tokens) / (_COST_RATIO * _LARGEST_TIME_RATIO * tokens_per_step)
    return max(1, math.ceil(max(num_steps / _VALIDATIONS, affordable)))
