"""Intervals, against distributions that are known exactly."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from ochat_train.suites.intervals import mean_estimate, paired_estimate
from ochat_train.suites.scores import busy_seconds


def exact_quantiles(values: list[float]) -> tuple[float, float]:
    """The 2.5 % and 97.5 % quantiles over all draws with replacement, each as likely as any other."""
    means = [sum(draw) / len(values) for draw in itertools.product(values, repeat=len(values))]
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


@pytest.mark.parametrize("values", [[0.0, 1.0, 1.0, 1.0], [1.0, 2.0, 4.0, 8.0, 10.0], [0.0, 0.0, 1.0, 0.0, 1.0, 0.0]])
def test_the_bootstrap_is_that_of_all_possible_draws(values: list[float]) -> None:
    estimate = mean_estimate(values, seed=3, highest=10.0)
    low, high = exact_quantiles(values)
    step = 1 / len(values)  # a quantile may fall on the neighbouring mean
    assert estimate.mean == pytest.approx(sum(values) / len(values), abs=1e-12)
    assert estimate.low == pytest.approx(low, abs=step + 1e-9)
    assert estimate.high == pytest.approx(high, abs=step + 1e-9)
    assert low < estimate.mean < high


def test_a_share_of_many_questions_has_the_binomial_interval() -> None:
    estimate = mean_estimate([1.0] * 264 + [0.0] * 36, seed=0)
    spread = 1.96 * math.sqrt(0.88 * 0.12 / 300)
    assert estimate.mean == pytest.approx(0.88)
    assert (estimate.low, estimate.high) == pytest.approx((0.88 - spread, 0.88 + spread), abs=0.006)


def test_the_seed_decides_the_interval() -> None:
    values = [float(number) for number in range(7)]
    first, again, other = (mean_estimate(values, seed=seed, highest=6.0) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_equal_values_are_not_certain() -> None:
    """(1 - p)^n = 0.025 at the end of the exact interval, n = 20."""
    none, all_of_them = mean_estimate([0.0] * 20, seed=0), mean_estimate([1.0] * 20, seed=0)
    assert (none.low, all_of_them.high) == (0.0, 1.0)
    assert (1 - none.high) ** 20 == pytest.approx(0.025)
    assert all_of_them.low**20 == pytest.approx(0.025)
    same = paired_estimate([1.0, 0.0] * 10, [1.0, 0.0] * 10, seed=0)
    assert same.mean == 0.0
    assert same.high == -same.low == pytest.approx(none.high)


def test_pairs_are_drawn_together() -> None:
    """The same differences in every question: the interval is narrow although each share's own is wide."""
    first = [0.0] * 60 + [1.0] * 40
    second = [0.0] * 55 + [1.0] * 45
    paired = paired_estimate(first, second, seed=0)
    alone = mean_estimate(first, seed=0)
    assert paired.mean == pytest.approx(0.05)
    assert paired.low > 0
    assert paired.high - paired.low < (alone.high - alone.low) / 2
    with pytest.raises(ValueError, match="shorter"):
        paired_estimate(first, second[1:], seed=0)


def test_time_in_which_anything_was_answered_counts_once() -> None:
    assert busy_seconds([(0.0, 2.0), (1.0, 3.0), (1.5, 1.6), (10.0, 11.0)]) == 4.0
    assert busy_seconds([]) == 0.0
