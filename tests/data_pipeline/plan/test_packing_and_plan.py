"""Packing and the plan: nothing lost, nothing twice, full packs, ranks with equal work, denominators known
beforehand.
"""

from __future__ import annotations

import hashlib
from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.plan.kinds import PlanKind
from data_pipeline.plan.packing import Packs, pack
from data_pipeline.plan.plan import EMPTY_PACK, EpochPlan, TrainingPlan, deal, num_micro_batches, plan_epoch
from data_pipeline.settings.classes import ClassSettings
from data_pipeline.settings.data import DataSettings, class_weights
from data_pipeline.settings.sources import SourceSettings

CAPACITY = 8192
PACKS_PER_STEP = 80
NUM_RANKS = 8


def sharegpt_like_lengths(count: int, seed: int = 0) -> np.ndarray:
    """Clipped lognormal with a mean of about 1,700 tokens, as conversations people shared have."""
    lengths = np.random.default_rng(seed).lognormal(7.0, 1.0, count)
    return np.clip(lengths, 8, CAPACITY).astype(np.int64)


def small_plan(
    lengths: Any,
    weights: Any = None,
    *,
    capacity: int,
    packs_per_step: int,
    seed: int = 0,
    epoch: int = 0,
    kind: PlanKind = "varied",
) -> EpochPlan:
    lengths = np.asarray(lengths, dtype=np.int32)
    weights = np.ones(len(lengths)) if weights is None else np.asarray(weights, dtype=np.float64)
    return plan_epoch(
        lengths, weights, capacity=capacity, packs_per_step=packs_per_step, seed=seed, epoch=epoch, kind=kind
    )


@pytest.fixture(scope="module")
def sharegpt_plan() -> EpochPlan:
    return small_plan(sharegpt_like_lengths(100_000), capacity=CAPACITY, packs_per_step=PACKS_PER_STEP)


@st.composite
def plans(draw: st.DrawFn) -> EpochPlan:
    capacity = draw(st.integers(1, 300))
    lengths = draw(st.lists(st.integers(1, capacity), min_size=1, max_size=120))
    return small_plan(
        lengths,
        [1.0 + row for row in range(len(lengths))],
        capacity=capacity,
        packs_per_step=draw(st.integers(1, 13)),
        seed=draw(st.integers(0, 2**32 - 1)),
        epoch=draw(st.integers(0, 5)),
        kind=draw(st.sampled_from(get_args(PlanKind))),
    )


# ---- packs ----


def test_the_example_of_the_module_is_true() -> None:
    packs = pack(np.array([7, 6, 4, 3, 2, 2]), capacity=10, rng=np.random.default_rng(0))
    names = {"".join(sorted("ABCDEF"[row] for row in part)) for part in np.split(packs.rows, packs.offsets[1:-1])}
    assert names == {"AD", "BC", "EF"}
    assert sorted(np.diff(packs.offsets)) == [2, 2, 2]


@settings(max_examples=60, deadline=None)
@given(plans(), st.integers(1, 9))
def test_every_conversation_is_trained_on_exactly_once_and_no_pack_overflows(plan: EpochPlan, num_ranks: int) -> None:
    trained = []
    for step in range(plan.num_steps):
        dealt = deal(plan, step, num_ranks=num_ranks)
        for pack_number in dealt.ravel():
            rows = plan.rows(int(pack_number))
            assert plan.lengths[rows].sum() <= plan.capacity
            assert (len(rows) == 0) == (pack_number == EMPTY_PACK)
            trained += rows.tolist()
    assert sorted(trained) == list(range(len(plan.lengths)))


@settings(max_examples=60, deadline=None)
@given(plans())
def test_the_packs_of_a_step_do_not_depend_on_the_number_of_ranks(plan: EpochPlan) -> None:
    for step in range(plan.num_steps):
        expected = set(range(step * plan.packs_per_step, min((step + 1) * plan.packs_per_step, len(plan.packs))))
        for num_ranks in (1, 2, 3, 8):
            dealt = deal(plan, step, num_ranks=num_ranks)
            assert dealt.shape == (num_ranks, num_micro_batches(plan.packs_per_step, num_ranks))
            packs = dealt[dealt != EMPTY_PACK].tolist()
            assert len(packs) == len(set(packs))
            assert set(packs) == expected


@settings(max_examples=60, deadline=None)
@given(plans(), st.integers(0, 2**32 - 1), st.integers(0, 5))
def test_a_plan_is_reproducible(plan: EpochPlan, seed: int, epoch: int) -> None:
    for kind in get_args(PlanKind):
        arguments: dict[str, Any] = {"seed": seed, "epoch": epoch, "kind": kind}
        once, again = (
            small_plan(plan.lengths, capacity=plan.capacity, packs_per_step=plan.packs_per_step, **arguments)
            for _ in range(2)
        )
        check_equal(once, again)


def check_equal(once: EpochPlan, again: EpochPlan) -> None:
    np.testing.assert_array_equal(once.packs.rows, again.packs.rows)
    np.testing.assert_array_equal(once.packs.offsets, again.packs.offsets)


@pytest.mark.parametrize("change", [{"epoch": 1}, {"seed": 1}], ids=str)
def test_another_epoch_or_seed_gives_other_steps(change: dict[str, int]) -> None:
    lengths = sharegpt_like_lengths(4_000)
    first = small_plan(lengths, capacity=CAPACITY, packs_per_step=8)
    second = small_plan(lengths, capacity=CAPACITY, packs_per_step=8, **change)

    def step_of_each_row(plan: EpochPlan) -> np.ndarray:
        steps = np.empty(len(plan.lengths), dtype=np.int64)
        for number in range(len(plan.packs)):
            steps[plan.rows(number)] = number // plan.packs_per_step
        return steps

    same_step = np.mean(step_of_each_row(first) == step_of_each_row(second))
    assert same_step < 3.0 / first.num_steps  # about one in num_steps is chance


def test_random_windows_give_other_combinations() -> None:
    def combinations(seed: int) -> set[tuple[int, ...]]:
        packs = pack(sharegpt_like_lengths(10_000), capacity=CAPACITY, rng=np.random.default_rng(seed), window=500)
        rows = [tuple(sorted(part.tolist())) for part in np.split(packs.rows, packs.offsets[1:-1])]
        return {packed for packed in rows if len(packed) > 1}  # who fills a pack alone stays alone

    first = combinations(0)
    assert len(first & combinations(1)) < 0.05 * len(first)


def test_packs_are_in_random_order_and_not_by_length() -> None:
    plan = small_plan(sharegpt_like_lengths(20_000), capacity=CAPACITY, packs_per_step=PACKS_PER_STEP)
    costs = plan.attention_costs
    halves = costs[: len(costs) // 2].mean() / costs[len(costs) // 2 :].mean()
    assert halves == pytest.approx(1.0, abs=0.05)


def test_the_last_step_is_filled_up_with_empty_packs() -> None:
    plan = small_plan([10] * 7, capacity=10, packs_per_step=4)  # seven packs: steps of four and of three
    assert plan.num_steps == 2
    assert np.count_nonzero(deal(plan, 0, num_ranks=2) == EMPTY_PACK) == 0
    last = deal(plan, 1, num_ranks=2)
    assert last.shape == (2, 2)
    assert np.count_nonzero(last == EMPTY_PACK) == 1
    assert plan.rows(EMPTY_PACK).tolist() == []


def test_ranks_that_do_not_divide_the_packs_get_empty_ones() -> None:
    dealt = deal(small_plan([10] * 4, capacity=10, packs_per_step=4), 0, num_ranks=3)
    assert dealt.shape == (3, 2)
    assert sorted(dealt.ravel().tolist()) == [EMPTY_PACK, EMPTY_PACK, 0, 1, 2, 3]


@pytest.mark.parametrize(("lengths", "named"), [([3, 0, 2], "row 1 has 0 tokens"), ([3, 5, 11], "row 2 has 11 tokens")])
def test_a_length_that_fits_no_pack_is_refused_by_name(lengths: list[int], named: str) -> None:
    with pytest.raises(ValueError, match=f"^{named}, but a pack holds 1 to 10$"):
        pack(np.array(lengths), capacity=10, rng=np.random.default_rng(0))


def test_windows_are_packed_on_their_own() -> None:
    lengths = sharegpt_like_lengths(1_000)
    packs = pack(lengths, capacity=CAPACITY, rng=np.random.default_rng(0), window=100)
    assert sorted(packs.rows.tolist()) == list(range(1_000))
    assert np.add.reduceat(lengths[packs.rows], packs.offsets[:-1]).max() <= CAPACITY
    assert len(packs) > len(pack(lengths, capacity=CAPACITY, rng=np.random.default_rng(0)))  # each window ends unfilled


@pytest.mark.parametrize(
    ("lengths", "capacity", "expected"),
    [
        ([6, 4, 5, 5], 10, [[4, 6], [5, 5]]),
        ([6, 3, 2, 4, 5], 10, [[2, 3, 5], [4, 6]]),  # first fit in this order would need three packs
        ([6, 5, 4, 3], 10, [[3, 5], [4, 6]]),  # 4 takes the smaller room
        ([64, 64, 65, 63], 128, [[63, 65], [64, 64]]),  # rooms on both sides of a word of the bitmap
        ([128, 127, 1], 128, [[1, 127], [128]]),
        ([1], 1, [[1]]),
    ],
)
def test_best_fit_decreasing_on_small_cases(lengths: list[int], capacity: int, expected: list[list[int]]) -> None:
    plan = small_plan(lengths, capacity=capacity, packs_per_step=1)
    assert sorted(sorted(plan.lengths[plan.rows(number)].tolist()) for number in range(len(plan.packs))) == expected


# ---- how full, and how even ----


def test_packs_are_99_9_percent_full(sharegpt_plan: EpochPlan) -> None:
    assert 1_600 < sharegpt_plan.lengths.mean() < 1_800
    assert sharegpt_plan.packing_efficiency >= 0.999


def first_fit(lengths: np.ndarray, capacity: int) -> float:
    """How full packs are where each conversation goes into the first pack with room, in order of arrival."""
    rooms, num_packs = np.full(len(lengths), capacity), 0
    for length in lengths:
        number = int(np.argmax(rooms[: num_packs + 1] >= length))
        rooms[number] -= length
        num_packs = max(num_packs, number + 1)
    return float(lengths.sum() / (num_packs * capacity))


def test_control_first_fit_in_order_of_arrival_is_less_full() -> None:
    lengths = sharegpt_like_lengths(20_000)
    assert first_fit(lengths, CAPACITY) < 0.999
    assert small_plan(lengths, capacity=CAPACITY, packs_per_step=1).packing_efficiency >= 0.999


def unevenness(plan: EpochPlan, packs_of_ranks: np.ndarray) -> float:
    """Largest deviation of a rank's sum of squared lengths from the mean over ranks."""
    costs = np.array(
        [sum(int((plan.lengths[plan.rows(int(p))].astype(np.int64) ** 2).sum()) for p in r) for r in packs_of_ranks]
    )
    return float(np.abs(costs / costs.mean() - 1.0).max())


def test_ranks_have_equal_attention_cost(sharegpt_plan: EpochPlan) -> None:
    full_steps = len(sharegpt_plan.packs) // PACKS_PER_STEP
    worst = max(unevenness(sharegpt_plan, deal(sharegpt_plan, step, num_ranks=NUM_RANKS)) for step in range(full_steps))
    assert worst <= 0.05


def test_control_packs_dealt_in_order_are_uneven(sharegpt_plan: EpochPlan) -> None:
    full_steps = len(sharegpt_plan.packs) // PACKS_PER_STEP
    in_order = [sharegpt_plan.step_packs(step).reshape(-1, NUM_RANKS).T for step in range(full_steps)]
    assert min(unevenness(sharegpt_plan, packs) for packs in in_order) > 0.05


def test_a_rank_works_on_its_costliest_pack_first() -> None:
    plan = small_plan(sharegpt_like_lengths(500), capacity=CAPACITY, packs_per_step=16)
    costs = plan.attention_costs[deal(plan, 0, num_ranks=4)]
    assert (np.diff(costs, axis=1) <= 0).all()


# ---- kinds of plans ----

# sha256 of rows and offsets as the first release planned them: 3,000 and 20,000 conversations, seed 5, epoch 2
FIRST_PLANS = {
    3_000: "3f96a592dcc14662a8b98b1ae09b58bf5f2e2d2175b509908b44f7d9dcd28737",
    20_000: "b9cfc89c429aaeb800b50609930570305e2a5bc75c788dfe147f852b5a773615",
}


def digest(plan: EpochPlan) -> str:
    packs = plan.packs
    return hashlib.sha256(packs.rows.astype("<i8").tobytes() + packs.offsets.astype("<i8").tobytes()).hexdigest()


@pytest.mark.parametrize("count", FIRST_PLANS)
def test_a_run_of_the_first_release_resumes_with_its_plan(count: int) -> None:
    lengths = sharegpt_like_lengths(20_000)[:count]
    plans = {
        kind: digest(small_plan(lengths, capacity=CAPACITY, packs_per_step=16, seed=5, epoch=2, kind=kind))
        for kind in get_args(PlanKind)
    }
    assert plans["first"] == FIRST_PLANS[count]
    assert len(set(plans.values())) == 3


def combinations_of(plan: EpochPlan) -> set[tuple[int, ...]]:
    rows = [tuple(sorted(part.tolist())) for part in np.split(plan.packs.rows, plan.packs.offsets[1:-1])]
    return {packed for packed in rows if len(packed) > 1}


@pytest.mark.parametrize("count", [500, 2_000, 8_000])
def test_few_conversations_are_packed_otherwise_in_each_epoch(count: int) -> None:
    lengths = sharegpt_like_lengths(count)

    def epochs(kind: PlanKind) -> list[EpochPlan]:
        return [small_plan(lengths, capacity=CAPACITY, packs_per_step=8, epoch=epoch, kind=kind) for epoch in range(3)]

    def recurring(plans: list[EpochPlan]) -> float:
        first, *others = map(combinations_of, plans)
        return float(np.mean([len(first & other) / len(first) for other in others]))

    first, varied = epochs("first"), epochs("varied")
    assert recurring(varied) < 0.25 < recurring(first)  # the control: as it was
    assert varied[0].packing_efficiency > first[0].packing_efficiency - 0.001


def slowest_to_mean(plan: EpochPlan, *, num_ranks: int, whole_pack: float) -> float:
    """Time of full steps relative to equal work. whole_pack: time of attention in a pack of one conversation; the rest
    of a pack takes 1.
    """
    slowest = mean = 0.0
    for step in range(len(plan.packs) // plan.packs_per_step):
        dealt = deal(plan, step, num_ranks=num_ranks)
        seconds = dealt.shape[1] + whole_pack * plan.attention_costs[dealt].sum(axis=1) / plan.capacity**2
        slowest, mean = slowest + seconds.max(), mean + seconds.mean()
    return slowest / mean - 1.0


@pytest.mark.parametrize(("num_ranks", "packs_per_step"), [(8, 8), (64, 64), (8, 16)])
def test_packs_of_like_cost_leave_no_rank_waiting(num_ranks: int, packs_per_step: int) -> None:
    lengths = sharegpt_like_lengths(20_000)
    varied, balanced = (
        slowest_to_mean(
            small_plan(lengths, capacity=CAPACITY, packs_per_step=packs_per_step, kind=kind),
            num_ranks=num_ranks,
            whole_pack=0.2,
        )
        for kind in ("varied", "balanced")
    )
    assert balanced < 0.3 * varied
    assert balanced < 0.02


def test_balanced_steps_hold_the_same_packs_in_random_order() -> None:
    lengths = sharegpt_like_lengths(20_000)
    varied, balanced = (
        small_plan(lengths, capacity=CAPACITY, packs_per_step=16, kind=kind) for kind in ("varied", "balanced")
    )
    assert combinations_of(varied) == combinations_of(balanced)
    assert len(balanced.packs) % 16, "the last step is not full"
    full = len(balanced.packs) // 16 * 16
    np.testing.assert_array_equal(
        balanced.packs.rows[balanced.packs.offsets[full] :], varied.packs.rows[varied.packs.offsets[full] :]
    )
    means = balanced.attention_costs[:full].reshape(-1, 16).mean(axis=1)
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.3, "steps are not sorted by cost"


# ---- denominators ----


def plan_by_hand() -> EpochPlan:
    """Packs {3, 1}, {0}, {2, 4} of capacity 10; steps of two packs."""
    return EpochPlan(
        packs=Packs(rows=np.array([3, 1, 0, 2, 4]), offsets=np.array([0, 2, 3, 5])),
        packs_per_step=2,
        capacity=10,
        lengths=np.array([10, 4, 7, 6, 1], dtype=np.int32),
        weight_sums=np.array([1.0, 0.5, 0.25, 4.0, 2.0]),
    )


def test_the_numbers_of_a_plan_made_by_hand() -> None:
    plan = plan_by_hand()
    assert plan.num_steps == 2
    assert [plan.rows(number).tolist() for number in range(3)] == [[3, 1], [0], [2, 4]]
    assert [plan.step_packs(step).tolist() for step in range(2)] == [[0, 1], [2]]
    assert [plan.step_weight(step) for step in range(2)] == [5.5, 2.25]
    assert plan.mean_step_weight == 3.875
    assert plan.attention_costs.tolist() == [52.0, 100.0, 50.0]
    assert plan.packing_efficiency == 28 / 30
    assert plan.max_conversations_per_pack == 2


def test_packs_dealt_by_hand() -> None:
    plan = plan_by_hand()
    assert deal(plan, 0, num_ranks=1).tolist() == [[1, 0]]  # the costliest first
    assert deal(plan, 0, num_ranks=2).tolist() == [[1], [0]]
    assert deal(plan, 1, num_ranks=2).tolist() == [[2], [EMPTY_PACK]]
    assert deal(plan, 0, num_ranks=3).tolist() == [[1], [0], [EMPTY_PACK]]


@settings(max_examples=60, deadline=None)
@given(plans())
def test_step_weights_add_up_to_the_whole_and_their_mean_is_the_epoch_denominator(plan: EpochPlan) -> None:
    steps = [plan.step_weight(step) for step in range(plan.num_steps)]
    assert sum(steps) == plan.weight_sums.sum()  # whole numbers below 2**53
    assert plan.mean_step_weight == pytest.approx(np.mean(steps), rel=1e-15)


@pytest.mark.parametrize(
    ("classes", "beta", "expected"),
    [
        # beta 0.4342945 is 1/ln(10) to seven digits, so a reward of 0 weighs 0.1 to seven digits
        ({"expert": {"reward": 1.0}, "suboptimal": {"reward": 0.0}}, 0.4342945, [1.0, 0.10000000959471155]),
        (
            {"a": {"reward": 2.0}, "b": {"reward": 1.0}, "c": {"reward": -1.0}},
            1.0,
            [1.0, 0.3678794411714423, 0.04978706836786394],
        ),
        ({"a": {"reward": 5.0}}, 0.1, [1.0]),
        ({"a": {"weight": 0.7}, "b": {"weight": 0.0}}, None, [0.7, 0.0]),
        ({"a": {"weight": 3.0}, "b": {"reward": 1.0}, "c": {"reward": 0.0}}, 1.0, [3.0, 1.0, 0.3678794411714423]),
    ],
)
def test_weights_of_class_tables(
    classes: dict[str, dict[str, float]], beta: float | None, expected: list[float]
) -> None:
    data = DataSettings(
        prepared_dir="prepared",
        classes={name: ClassSettings(condition=name, **spec) for name, spec in classes.items()},
        beta=beta,
        sources=[SourceSettings(path="a.jsonl", format="openchat")],
    )
    assert list(class_weights(data)) == list(classes)
    assert list(class_weights(data).values()) == pytest.approx(expected, rel=1e-14)


# ---- the whole run ----


def run_plan(lengths: Any, weights: Any, *, epochs: int, max_steps: int | None = None) -> TrainingPlan:
    split: Any = SimpleNamespace(
        num_tokens=np.asarray(lengths, dtype=np.int32), weight_sum=np.asarray(weights, dtype=np.float64)
    )
    return TrainingPlan(split, capacity=10, packs_per_step=2, seed=3, epochs=epochs, max_steps=max_steps)


def test_locate_walks_over_the_epochs() -> None:
    plan = run_plan([10] * 5, [1.0] * 5, epochs=3)
    assert plan.steps_per_epoch == [3, 3, 3]
    assert plan.num_steps == 9
    places = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (2, 2)]
    assert [plan.locate(step) for step in range(9)] == places
    with pytest.raises(IndexError, match="only 9 steps"):
        plan.locate(9)


@pytest.mark.parametrize(("max_steps", "num_steps"), [(None, 9), (4, 4), (9, 9), (100, 9)])
def test_max_steps_shortens_a_run_and_never_lengthens_it(max_steps: int | None, num_steps: int) -> None:
    plan = run_plan([10] * 5, [1.0] * 5, epochs=3, max_steps=max_steps)
    assert plan.num_steps == num_steps
    assert plan.locate(num_steps - 1) == divmod(num_steps - 1, 3)


def test_the_denominators_of_a_run() -> None:
    weights = np.array([1.0, 0.5, 0.25, 4.0, 2.0])
    plan = run_plan([10] * 5, weights, epochs=2)
    by_step = [plan.denominator(step, "step") for step in range(6)]
    assert sum(by_step[:3]) == sum(by_step[3:]) == 7.75
    assert [plan.denominator(step, "epoch") for step in range(6)] == [7.75 / 3] * 6
    assert [plan.denominator(step, "step") for step in (5, 0, 3)] == [
        by_step[5],
        by_step[0],
        by_step[3],
    ]  # in any order


def test_a_run_shuffles_anew_in_each_epoch_and_reports_its_packs() -> None:
    lengths = [3, 3, 3, 10, 5, 5, 7, 2, 1, 4] * 4
    plan = run_plan(lengths, [1.0] * 40, epochs=3)
    orders = [plan.epoch(epoch).packs.rows.tolist() for epoch in range(3)]
    assert all(sorted(order) == list(range(40)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3
    assert plan.epoch(0).packs.rows.tolist() == orders[0]
    most = max(plan.epoch(epoch).max_conversations_per_pack for epoch in range(3))
    assert plan.max_conversations_per_pack == most
    assert plan.steps_per_epoch == [plan.epoch(epoch).num_steps for epoch in range(3)]
