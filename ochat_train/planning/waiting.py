"""How long GPUs wait for the slowest one of a step, from the lengths of the conversations that each works on."""

from __future__ import annotations

import numpy as np

from data_pipeline.plan.plan import EMPTY_PACK, EpochPlan, deal
from ochat_train.planning.work import Work

# Attention reaches less of a GPU's peak than matrix products: 8 to 10 % of the time of a step whose operations it is
# 4 to 5 % of (docs/performance.md).
_ATTENTION_SLOWNESS = 2.0
_MOST_PACKS = 20_000  # looked at, of an epoch


def waiting_ratio(plan: EpochPlan, work: Work, *, num_ranks: int) -> float:
    """Time of the steps of an epoch relative to that with equal work on all ranks, less 1 (so 0.05 for 5 % more).

    Each rank takes as many packs of constant length, so only attention differs. Of a long epoch, steps at equal
    distances are taken; a step that is not full only counts if there is no other.
    """
    num_full = max(1, len(plan.packs) // plan.packs_per_step)
    distance = max(1, num_full * plan.packs_per_step // _MOST_PACKS)
    slowest = mean = 0.0
    for step in range(0, num_full, distance):
        dealt = deal(plan, step, num_ranks=num_ranks)
        squares = np.where(dealt == EMPTY_PACK, 0.0, plan.attention_costs[dealt]).sum(axis=1)
        linear = work.flops(num_tokens=plan.capacity * dealt.shape[1], squared_lengths=0.0)
        seconds = linear + _ATTENTION_SLOWNESS * np.array(
            [work.flops(num_tokens=0.0, squared_lengths=float(square)) for square in squares]
        )
        slowest += float(seconds.max())
        mean += float(seconds.mean())
    return slowest / mean - 1.0
