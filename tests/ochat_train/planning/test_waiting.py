"""Waiting for the slowest GPU of a step, against times worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from data_pipeline.plan.packing import Packs
from data_pipeline.plan.plan import EpochPlan
from ochat_train.planning.waiting import waiting_ratio
from ochat_train.planning.work import Work

# 6 * 10 operations a token, and twice 6 * 1 * 1 for each squared length: attention is slower than its operations say
WORK = Work(matmul_parameters=10, attention_width=1, num_layers=1)


def plan_of(lengths: list[list[int]], *, packs_per_step: int) -> EpochPlan:
    """One pack for each list."""
    sizes = [len(pack) for pack in lengths]
    rows = np.arange(sum(sizes))
    return EpochPlan(
        packs=Packs(rows=rows, offsets=np.concatenate(([0], np.cumsum(sizes)))),
        packs_per_step=packs_per_step,
        capacity=10,
        lengths=np.concatenate([np.array(pack) for pack in lengths]),
        weight_sums=np.ones(len(rows)),
    )


def test_a_step_takes_as_long_as_its_slowest_rank() -> None:
    plan = plan_of([[10], [5, 5]], packs_per_step=2)  # 600 + 12 * 100 and 600 + 12 * 50
    assert waiting_ratio(plan, WORK, num_ranks=2) == pytest.approx(1800 / 1500 - 1, rel=1e-12)
    assert waiting_ratio(plan, WORK, num_ranks=1) == pytest.approx(0.0, abs=1e-12)


def test_a_rank_without_a_pack_waits_for_attention_only() -> None:
    plan = plan_of([[10], [5, 5]], packs_per_step=2)  # the third rank computes padding: 600
    assert waiting_ratio(plan, WORK, num_ranks=3) == pytest.approx(1800 / ((1800 + 1200 + 600) / 3) - 1, rel=1e-12)


def test_steps_add_up_and_the_last_one_counts_if_it_is_the_only_one() -> None:
    steps = plan_of([[10], [5, 5], [5, 5], [5, 5], [1]], packs_per_step=2)
    assert waiting_ratio(steps, WORK, num_ranks=2) == pytest.approx((1800 + 1200) / (1500 + 1200) - 1, rel=1e-12)
    alone = plan_of([[10]], packs_per_step=2)
    assert waiting_ratio(alone, WORK, num_ranks=2) == pytest.approx(1800 / 1200 - 1, rel=1e-12)


def test_a_long_epoch_is_sampled() -> None:
    whole = plan_of([[10], [5, 5]] * 30_000, packs_per_step=2)
    assert waiting_ratio(whole, WORK, num_ranks=2) == pytest.approx(1800 / 1500 - 1, rel=1e-9)
