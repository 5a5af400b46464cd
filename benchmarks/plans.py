"""What the plans of `train.plan` cost and gain: time of steps, packs that come again, how full packs are, planning.

    python benchmarks/plans.py                                          # made lengths
    python benchmarks/plans.py --lengths openchat_v1_lengths.json       # and the lengths of a data set: a JSON list

Three tables, each with the plan of the first release and the others of one run:

1. Time of steps on 8, 64 and 256 ranks with 1 to 10 packs each, relative to equal work on all ranks, for the shapes of
   Mistral-7B; `ratio`: the first plan's time over that of `balanced`. Computed from operations (planning/waiting.py),
   not measured on GPUs.
2. The share of packs of several conversations that come again in another epoch, and how full packs are.
3. Seconds to plan an epoch of a million conversations, median of five, after compilation.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data_pipeline.plan.kinds import PlanKind
from data_pipeline.plan.plan import EpochPlan, plan_epoch
from ochat_train.planning.waiting import waiting_ratio
from ochat_train.planning.work import Work

MISTRAL_7B = Work(matmul_parameters=7_110_393_856, attention_width=4096, num_layers=32)
KINDS: tuple[PlanKind, ...] = get_args(PlanKind)
RANKS, PACKS_PER_RANK, SMALL = (8, 64, 256), (1, 2, 4, 10), (500, 2_000, 8_000)


def main() -> None:
    """Compute and print."""
    options = _options()
    given = np.array(json.loads(options.lengths.read_text()), dtype=np.int64) if options.lengths else None
    data = [
        ("lognormal, mean 1,630", made_lengths(options.count, 7.0, 1.0, 8192), 8192),
        ("lognormal, mean 3,660", made_lengths(options.count, 7.5, 1.3, 32768), 32768),
    ]
    if given is not None:
        many = np.resize(given, options.count)  # of its own there are too few for many ranks
        data += [(options.lengths.name, many, capacity) for capacity in (8192, 32768)]
    print(f"{'steps':<28}{'pack':>7}{'ranks':>7}{'packs':>7}", *(f"{kind:>10}" for kind in KINDS), f"{'ratio':>8}")
    for row in itertools.chain.from_iterable(step_rows(*entry) for entry in data):
        print(row)
    small = [(f"lognormal, {count:,}", made_lengths(count, 7.0, 1.0, 8192), 8192) for count in SMALL]
    if given is not None:
        small += [(f"{options.lengths.name}, {len(given):,}", given, capacity) for capacity in (2048, 8192, 32768)]
    small.append((f"lognormal, {options.count:,}", data[0][1], 8192))
    print(f"\n{'packs':<36}{'pack':>7}", *(f"{kind + ' again':>16}{'full':>9}" for kind in KINDS[:2]))
    for entry in small:
        print(recurrence_row(*entry))
    million = made_lengths(1_000_000, 7.0, 1.0, 8192)
    seconds = (f"{kind} {planning_seconds(million, kind):.2f}" for kind in KINDS)
    print("\nseconds to plan 1,000,000 conversations:", *seconds)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=300_000, help="conversations of a data set (default: 300,000)")
    parser.add_argument("--lengths", type=Path, help="JSON list of lengths")
    return parser.parse_args()


def made_lengths(count: int, mu: float, sigma: float, longest: int) -> np.ndarray:
    """Lognormal lengths, cut at the longest."""
    return np.clip(np.random.default_rng(0).lognormal(mu, sigma, count), 8, longest).astype(np.int64)


def plan(lengths: np.ndarray, capacity: int, packs_per_step: int, kind: PlanKind, *, epoch: int = 0) -> EpochPlan:
    """The plan of an epoch."""
    weights = np.ones(len(lengths))
    return plan_epoch(
        lengths, weights, capacity=capacity, packs_per_step=packs_per_step, seed=0, epoch=epoch, kind=kind
    )


def step_rows(name: str, lengths: np.ndarray, capacity: int) -> Iterator[str]:
    """Lines of the first table."""
    for num_ranks, packs_per_rank in itertools.product(RANKS, PACKS_PER_RANK):
        plans = [plan(lengths, capacity, num_ranks * packs_per_rank, kind) for kind in KINDS]
        if plans[0].num_steps < 3:
            continue
        times = [1.0 + waiting_ratio(epoch, MISTRAL_7B, num_ranks=num_ranks) for epoch in plans]
        numbers = " ".join(f"{value:>10.4f}" for value in times)
        yield f"{name:<28}{capacity:>7,}{num_ranks:>7}{packs_per_rank:>7} {numbers} {times[0] / times[-1]:>8.4f}"


def recurrence_row(name: str, lengths: np.ndarray, capacity: int) -> str:
    """A line of the second table."""
    cells = []
    for kind in KINDS[:2]:
        plans = [plan(lengths, capacity, 8, kind, epoch=epoch) for epoch in range(3)]
        first, *others = map(combinations, plans)
        again = statistics.mean(len(first & other) / len(first) for other in others)
        full = statistics.mean(epoch.packing_efficiency for epoch in plans)
        cells.append(f"{again:>16.1%}{full:>9.3%}")
    return f"{name:<36}{capacity:>7,} {' '.join(cells)}"


def combinations(epoch: EpochPlan) -> set[tuple[int, ...]]:
    """The packs of several conversations, as sets of rows."""
    rows = np.split(epoch.packs.rows, epoch.packs.offsets[1:-1])
    return {tuple(sorted(part.tolist())) for part in rows if len(part) > 1}


def planning_seconds(lengths: np.ndarray, kind: PlanKind) -> float:
    """Median of five."""
    seconds = []
    for epoch in range(5):
        began = time.perf_counter()
        plan(lengths, 8192, 16, kind, epoch=epoch)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


if __name__ == "__main__":
    main()
