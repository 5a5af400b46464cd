"""How fast conversations are packed, and how full the packs are.

    python benchmarks/packing.py                                          # 10 million made lengths, capacity 8,192
    python benchmarks/packing.py --lengths openchat_v1_lengths.json       # and the lengths of a data set: a JSON list

Compares `data_pipeline.plan.packing.pack` with plain first-fit decreasing over all lengths at once (every conversation
goes into the first pack that has room, longest first; found with a segment tree; also numba, one core), the usual
heuristic, whose packs are the same in every epoch. Printed: compilation apart; a table with the median seconds of each,
the number of packs and how full they are; for given lengths also the steps of `--ranks` ranks with one pack each, and
how full these are. The time of `pack` holds everything from lengths to the rows of each pack; that of the baseline only
the pack numbers.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

MEDIAN_LENGTH, SIGMA = 1_000, 0.9  # of the made lengths (lognormal, cut at the capacity)


def main() -> None:
    """Measure and print."""
    options = _options()
    with tempfile.TemporaryDirectory(prefix="bench-packing-") as cache:
        numba.config.CACHE_DIR = cache  # so that compilation is measured, not a cache from an earlier run
        compile_seconds = {
            name: _seconds(packer, _made_lengths(100, 1024), 1024, 0)[0] for name, packer in PACKERS.items()
        }
        rows = measure("made", _made_lengths(options.count, options.capacity), options.capacity, options)
        if options.lengths:
            given = np.array(json.loads(options.lengths.read_text()), dtype=np.int64)
            for capacity in (8192, 32768):
                rows += measure(options.lengths.name, given, capacity, options)
    result = {"compile_seconds": compile_seconds, "ranks": options.ranks, "repeats": options.repeats, "rows": rows}
    print(json.dumps(result) if options.json else table(result))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000_000, help="made lengths (default: 10 million)")
    parser.add_argument(
        "--capacity", type=int, default=8192, help="tokens of a pack, for the made lengths (default: 8192)"
    )
    parser.add_argument("--lengths", type=Path, help="JSON list of lengths, also packed at capacities 8,192 and 32,768")
    parser.add_argument("--ranks", type=int, default=8, help="packs of a step, for given lengths (default: 8)")
    parser.add_argument("--repeats", type=int, default=3, help="measurements of each, turn by turn (default: 3)")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    return parser.parse_args()


def _made_lengths(count: int, capacity: int) -> np.ndarray:
    lengths = np.random.default_rng(0).lognormal(np.log(MEDIAN_LENGTH), SIGMA, size=count)
    return np.clip(lengths, 1, capacity).astype(np.int64)


# ---- what is measured: (lengths, capacity, seed) -> number of packs, and the pack of each conversation ----

Packer = Callable[[np.ndarray, int, int], tuple[int, Callable[[], np.ndarray]]]


def ochat_pack(lengths: np.ndarray, capacity: int, seed: int) -> tuple[int, Callable[[], np.ndarray]]:
    """`data_pipeline.plan.packing.pack`; the pack numbers are worked out after the clock has stopped."""
    from data_pipeline.plan.packing import pack

    packs = pack(lengths, capacity=capacity, rng=np.random.default_rng(seed))

    def pack_of() -> np.ndarray:
        numbers = np.full(len(lengths), -1)
        numbers[packs.rows] = np.repeat(np.arange(len(packs)), np.diff(packs.offsets))
        return numbers

    return len(packs), pack_of


def plain_first_fit(lengths: np.ndarray, capacity: int, seed: int) -> tuple[int, Callable[[], np.ndarray]]:
    """First-fit decreasing over everything."""
    order = np.argsort((capacity - lengths).astype(np.uint16 if capacity < 1 << 16 else np.int64), kind="stable")
    numbers, num_packs = _first_fit(lengths[order], capacity)

    def pack_of() -> np.ndarray:
        by_row: np.ndarray = np.empty_like(numbers)
        by_row[order] = numbers
        return by_row

    return num_packs, pack_of


PACKERS: dict[str, Packer] = {"ochat pack": ochat_pack, "first-fit decreasing": plain_first_fit}


@numba.njit
def _first_fit(lengths: np.ndarray, capacity: int) -> tuple[np.ndarray, int]:
    """Pack number of each length in the order given; `room` is a tree of the largest room in each range of packs."""
    num_leaves = 1
    while num_leaves < len(lengths):
        num_leaves *= 2
    room = np.full(2 * num_leaves, capacity, dtype=np.int32)
    numbers = np.empty(len(lengths), dtype=np.int64)
    num_packs = 0
    for i in range(len(lengths)):
        node = 1
        while node < num_leaves:  # the left child if anything fits there
            node = 2 * node if room[2 * node] >= lengths[i] else 2 * node + 1
        numbers[i] = node - num_leaves
        num_packs = max(num_packs, numbers[i] + 1)
        room[node] -= lengths[i]
        node //= 2
        while node >= 1:
            room[node] = max(room[2 * node], room[2 * node + 1])
            node //= 2
    return numbers, num_packs


# ---- measuring ----


def measure(data: str, lengths: np.ndarray, capacity: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """One row of results for each packer."""
    seconds: dict[str, list[float]] = {name: [] for name in PACKERS}
    num_packs: dict[str, int] = {}
    for repeat in range(options.repeats):
        for name, packer in PACKERS.items():
            taken, num_packs[name], pack_of = _seconds(packer, lengths, capacity, repeat)
            seconds[name].append(taken)
            _check(lengths, pack_of(), num_packs[name], capacity)
    num_tokens = int(lengths.sum())
    rows = []
    for name, count in num_packs.items():
        steps = -(-count // options.ranks)
        rows.append(
            {
                "data": data,
                "packer": name,
                "conversations": len(lengths),
                "tokens": num_tokens,
                "capacity": capacity,
                "seconds": statistics.median(seconds[name]),
                "packs": count,
                "fill_ratio": num_tokens / (count * capacity),
                "steps": steps,
                "step_fill_ratio": num_tokens / (steps * options.ranks * capacity),
            }
        )
    return rows


def _seconds(
    packer: Packer, lengths: np.ndarray, capacity: int, seed: int
) -> tuple[float, int, Callable[[], np.ndarray]]:
    began = time.perf_counter()
    num_packs, pack_of = packer(lengths, capacity, seed)
    return time.perf_counter() - began, num_packs, pack_of


def _check(lengths: np.ndarray, pack_of: np.ndarray, num_packs: int, capacity: int) -> None:
    """Every conversation is in a pack, and no pack is overfull or empty."""
    loads = np.bincount(pack_of, weights=lengths, minlength=num_packs)
    if len(pack_of) != len(lengths) or len(loads) != num_packs or loads.max() > capacity or loads.min() < 1:
        sys.exit("not a valid packing")


def table(result: dict[str, Any]) -> str:
    """The results as text."""
    compiled = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in result["compile_seconds"].items())
    lines = [
        f"compilation (once, then cached): {compiled}; seconds are medians of {result['repeats']}",
        "",
        f"{'data':<26}{'capacity':>9}{'conversations':>15}  {'packer':<22}{'seconds':>9}{'packs':>11}{'% full':>9}"
        f"{'steps':>9}{'% full':>9}",
    ]
    for row in result["rows"]:
        lines.append(
            f"{row['data']:<26}{row['capacity']:>9,}{row['conversations']:>15,}  "
            f"{row['packer']:<22}{row['seconds']:>9.3f}{row['packs']:>11,}{100 * row['fill_ratio']:>9.3f}"
            f"{row['steps']:>9,}{100 * row['step_fill_ratio']:>9.3f}"
        )
    lines.append(
        f"\nsteps: of {result['ranks']} ranks with one pack each; the last `% full` counts the last step's empty packs "
        "too"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
