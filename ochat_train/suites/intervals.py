"""95 % intervals of means over questions, by the bootstrap.

The percentile bootstrap (Efron and Tibshirani 1993, chapter 13): draw as many questions as there are, with replacement,
and take the mean, `NUM_DRAWS` times. Questions with equal values are exchangeable, so the numbers of each value in a
draw are multinomial, and are drawn as such: the distribution is the same, and the work does not grow with their number.

Where all values are equal, every draw is the same and the bootstrap would claim certainty. Then the interval reaches as
far as the exact one (Clopper and Pearson 1934) does for a share of 0 or 1: (0.025)^(1/n) short of the range.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

NUM_DRAWS = 10_000
_TAIL = 0.025  # on each side of 95 %


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean with its 95 % interval."""

    mean: float
    low: float
    high: float


def mean_estimate(values: Sequence[float], *, seed: int, lowest: float = 0.0, highest: float = 1.0) -> Estimate:
    """The mean of values of questions, float64, in [lowest, highest], with its interval. At least one value.

    seed: of the draws; the same seed gives the same interval.
    """
    distinct, counts = np.unique(np.asarray(values, dtype=np.float64), return_counts=True)
    num_values = int(counts.sum())
    mean = float(distinct @ counts / num_values)
    if len(distinct) == 1:
        rest = 1.0 - _TAIL ** (1.0 / num_values)
        return Estimate(mean=mean, low=mean - rest * (mean - lowest), high=mean + rest * (highest - mean))
    rng = np.random.default_rng(seed)
    means = rng.multinomial(num_values, counts / num_values, size=NUM_DRAWS) @ distinct / num_values
    low, high = np.quantile(means, (_TAIL, 1.0 - _TAIL))
    return Estimate(mean=mean, low=float(low), high=float(high))


def paired_estimate(first: Sequence[float], second: Sequence[float], *, seed: int, highest: float = 1.0) -> Estimate:
    """The mean of second - first over the same questions, with its interval: both values of a question are drawn
    together. Values are in [0, highest]. Raises ValueError where the lengths differ.
    """
    differences = [b - a for a, b in zip(first, second, strict=True)]
    return mean_estimate(differences, seed=seed, lowest=-highest, highest=highest)
