"""The plan: which conversation is in which pack of which optimizer step, a pure function of data, recipe and seed.

The number of GPUs is not part of it. Ranks only decide who works on which pack of a step (`deal`), so a run can resume
on another number of GPUs and take the same steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from data_pipeline.plan.kinds import FIRST_PLAN, PlanKind
from data_pipeline.plan.packing import Packs, pack
from data_pipeline.prepared.dataset import PreparedSplit

# Steps whose packs are sorted by cost together. With one pack of 8,192 tokens on each GPU, a step of Mistral-7B takes
# 1.4 % longer than if all packs were equal (unsorted: 15 %). More would put conversations of one length together for
# little.
_SORTED_STEPS = 8
EMPTY_PACK = -1  # fills up the last step of an epoch, and ranks that would have fewer packs than others


@dataclass(frozen=True, kw_only=True)
class EpochPlan:
    """One epoch: packs in the order of training; step s takes packs [s * packs_per_step, (s + 1) * packs_per_step).

    lengths: int64[rows], tokens. weight_sums: float64[rows].
    """

    packs: Packs
    packs_per_step: int
    capacity: int
    lengths: np.ndarray
    weight_sums: np.ndarray

    @property
    def num_steps(self) -> int:
        """Optimizer steps in this epoch; the last one may hold fewer packs."""
        return -(-len(self.packs) // self.packs_per_step)

    def step_packs(self, step: int) -> np.ndarray:
        """Pack numbers of step `step` (0-based) of this epoch, at most `packs_per_step`."""
        return np.arange(step * self.packs_per_step, min((step + 1) * self.packs_per_step, len(self.packs)))

    def rows(self, pack_number: int) -> np.ndarray:
        """Rows of a pack, int64; none for EMPTY_PACK."""
        if pack_number == EMPTY_PACK:
            return np.zeros(0, dtype=np.int64)
        return self.packs[pack_number]

    def step_rows(self, step: int) -> np.ndarray:
        """Rows of all packs of step `step` (0-based) of this epoch, int64."""
        packs = self.step_packs(step)
        return self.packs.rows[self.packs.offsets[packs[0]] : self.packs.offsets[packs[-1] + 1]]

    @cached_property
    def attention_costs(self) -> np.ndarray:
        """float64[packs]: sum of squared lengths, to which the cost of attention is proportional."""
        return _attention_costs(self.packs, self.lengths)

    @cached_property
    def _pack_weights(self) -> np.ndarray:
        return np.add.reduceat(self.weight_sums[self.packs.rows], self.packs.offsets[:-1])

    def step_weight(self, step: int) -> float:
        """Sum of loss weights over all packs of a step: the denominator `step`."""
        return float(self._pack_weights[self.step_packs(step)].sum())

    @property
    def mean_step_weight(self) -> float:
        """Mean of `step_weight` over the epoch: the denominator `epoch`."""
        return float(self.weight_sums.sum()) / self.num_steps

    @property
    def packing_efficiency(self) -> float:
        """Share of the packs' room that holds tokens (empty packs that fill up the last step are not counted)."""
        return float(self.lengths.sum()) / (len(self.packs) * self.capacity)

    @property
    def max_conversations_per_pack(self) -> int:
        """The most conversations that one pack holds."""
        return int(np.diff(self.packs.offsets).max())


def plan_epoch(
    lengths: np.ndarray,
    weight_sums: np.ndarray,
    *,
    capacity: int,
    packs_per_step: int,
    seed: int,
    epoch: int,
    kind: PlanKind = "varied",
) -> EpochPlan:
    """Plan one epoch (0-based). Every row is in exactly one pack; the same arguments always give the same plan."""
    rng = np.random.Generator(np.random.Philox(key=[seed, epoch]))
    packs = pack(lengths, capacity=capacity, rng=rng, varied=kind != FIRST_PLAN)
    if kind == "balanced":
        packs = _in_order(packs, _like_with_like(_attention_costs(packs, lengths), packs_per_step, rng))
    return EpochPlan(
        packs=packs,
        packs_per_step=packs_per_step,
        capacity=capacity,
        lengths=np.asarray(lengths),
        weight_sums=weight_sums,
    )


def _attention_costs(packs: Packs, lengths: np.ndarray) -> np.ndarray:
    """float64[packs]: sum of squared lengths."""
    return np.add.reduceat(lengths[packs.rows].astype(np.float64) ** 2, packs.offsets[:-1])


def _like_with_like(costs: np.ndarray, packs_per_step: int, rng: np.random.Generator) -> np.ndarray:
    """int64[packs]: an order of packs in which the packs of a step cost about the same, and steps come in random order.

    Only packs of a few steps are sorted together, so a step is still a sample of the epoch. What does not fill a step
    stays last.
    """
    num_full = len(costs) // packs_per_step
    order = np.arange(num_full * packs_per_step)
    block = _SORTED_STEPS * packs_per_step
    for start in range(0, len(order), block):
        part = order[start : start + block]
        order[start : start + block] = part[np.argsort(costs[part], kind="stable")]
    steps = order.reshape(num_full, packs_per_step)[rng.permutation(num_full)]
    return np.concatenate((steps.ravel(), np.arange(len(order), len(costs))))


def _in_order(packs: Packs, order: np.ndarray) -> Packs:
    """The same packs with other numbers: new pack n is pack order[n]."""
    sizes = np.diff(packs.offsets)[order]
    offsets = np.concatenate(([0], np.cumsum(sizes)))
    slots = np.repeat(packs.offsets[:-1][order] - offsets[:-1], sizes) + np.arange(len(packs.rows))
    return Packs(rows=packs.rows[slots], offsets=offsets)


def num_micro_batches(packs_per_step: int, num_ranks: int) -> int:
    """Packs that each rank works on in a step."""
    return -(-packs_per_step // num_ranks)


def deal(plan: EpochPlan, step: int, *, num_ranks: int) -> np.ndarray:
    """Deal the packs of a step to ranks, so that they have equal attention cost.

    Returns int64[num_ranks, micro_batches]; EMPTY_PACK where there is none. Every rank gets the same number of packs,
    the costliest first, so that ranks also keep pace inside a step.
    """
    packs = plan.step_packs(step)
    per_rank = num_micro_batches(plan.packs_per_step, num_ranks)
    dealt = np.full((num_ranks, per_rank), EMPTY_PACK, dtype=np.int64)
    taken = np.zeros(num_ranks, dtype=np.int64)
    load = np.zeros(num_ranks)
    for pack_number in packs[np.argsort(-plan.attention_costs[packs], kind="stable")]:
        rank = int(np.argmin(np.where(taken < per_rank, load, np.inf)))
        dealt[rank, taken[rank]] = pack_number
        taken[rank] += 1
        load[rank] += plan.attention_costs[pack_number]
    return dealt


class TrainingPlan:
    """All epochs of a run. Steps are counted from 0 over the whole run; the last two epochs asked for are held in
    memory.
    """

    def __init__(
        self,
        split: PreparedSplit,
        *,
        capacity: int,
        packs_per_step: int,
        seed: int,
        epochs: int,
        max_steps: int | None,
        kind: PlanKind = "varied",
    ) -> None:
        self._split = split
        self._arguments: dict[str, Any] = {
            "capacity": capacity,
            "packs_per_step": packs_per_step,
            "seed": seed,
            "kind": kind,
        }
        self._planned: dict[int, EpochPlan] = {}
        self.capacity = capacity
        self.packs_per_step = packs_per_step
        self.steps_per_epoch = []
        self.max_conversations_per_pack = 0
        for epoch in range(epochs):
            plan = self.epoch(epoch)
            self.steps_per_epoch.append(plan.num_steps)
            self.max_conversations_per_pack = max(self.max_conversations_per_pack, plan.max_conversations_per_pack)
        self.packing_efficiency = plan.packing_efficiency
        total = sum(self.steps_per_epoch)
        self.num_steps = total if max_steps is None else min(total, max_steps)

    def epoch(self, epoch: int) -> EpochPlan:
        """The plan of one epoch (0-based)."""
        plan = self._planned.get(epoch)
        if plan is None:
            plan = plan_epoch(self._split.num_tokens, self._split.weight_sum, epoch=epoch, **self._arguments)
            # a new dictionary: data for the next epoch are read in a thread while this one is trained on
            self._planned = {**dict(list(self._planned.items())[-1:]), epoch: plan}
        return plan

    def locate(self, step: int) -> tuple[int, int]:
        """Epoch and step inside that epoch (both 0-based) of the run's step `step`."""
        for epoch, num_steps in enumerate(self.steps_per_epoch):
            if step < num_steps:
                return epoch, step
            step -= num_steps
        raise IndexError(f"the run has only {sum(self.steps_per_epoch)} steps")

    def denominator(self, step: int, kind: str) -> float:
        """What the weighted loss of a step is divided by; known before the step on every rank.

        `epoch`: mean step weight of the epoch. `step`: the step's own weight (OpenChat).
        """
        epoch, step_in_epoch = self.locate(step)
        plan = self.epoch(epoch)
        return plan.mean_step_weight if kind == "epoch" else plan.step_weight(step_in_epoch)
