"""Random damage to every file that a user can hand to `ochat`, and how the command that reads it ends.

    python benchmarks/fuzz.py --cases 2000 --jobs 2 --json fuzz.json

Each case damages one file of a small world (recipe, raw data, tokenizer, base, prepared folder, checkpoint, run folder,
export) and runs one command that reads it, in its own process. An exit code that is not documented, a traceback,
the death of the process and more than 10 seconds are failures. Seed and number of a case repeat it.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.support.fuzz.run import Result
from tests.support.fuzz.world import KINDS
from tests.support.processes import process_environment
from tests.support.rank_processes import ForkedRank


def main() -> int:
    """Run the cases and print the table; 1 if one of them failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="processes that run cases at the same time")
    parser.add_argument("--json", type=Path, help="also write the results here")
    options = parser.parse_args()
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        results = run(Path(folder), options)
    print_table(results)
    print(f"{len(results)} cases in {time.monotonic() - start:.0f} s")
    if options.json:
        options.json.write_text(json.dumps([vars(result) for result in results], indent=1) + "\n", encoding="utf-8")
    return 0 if all(result.is_good for result in results) else 1


def run(folder: Path, options: Any) -> list[Result]:
    """The results of all cases, which are shared out over processes."""
    processes = []
    for number in range(options.jobs):
        first, end = (options.cases * n // options.jobs for n in (number, number + 1))
        place = folder / str(number)
        place.mkdir()
        job = {"folder": str(place), "seed": options.seed, "first": options.first + first, "count": end - first}
        processes.append(ForkedRank("tests.support.fuzz.run", [json.dumps(job)], process_environment({}), errors=True))
    results = []
    for process in processes:
        output, errors = process.communicate()
        assert process.wait() == 0, errors
        results += [Result(**json.loads(line)) for line in output.splitlines() if line.startswith("{")]
    return results


def print_table(results: list[Result]) -> None:
    """A line for each kind of file: cases by how they ended. Then the cases that failed."""
    outcomes = sorted({result.outcome for result in results})
    print(f"{'kind':<18}" + "".join(f"{outcome:>12}" for outcome in outcomes) + f"{'slowest':>12}")
    for kind in KINDS:
        found = [result for result in results if result.kind == kind.name]
        counts = Counter(result.outcome for result in found)
        slowest = max((result.seconds for result in found), default=0.0)
        print(f"{kind.name:<18}" + "".join(f"{counts[outcome]:>12}" for outcome in outcomes) + f"{slowest:>10.1f} s")
    for result in results:
        if not result.is_good:
            print(f"\ncase {result.number}: {result.file}, {result.mutation}, `{result.command}`: {result.outcome}")
            print(result.detail)


if __name__ == "__main__":
    sys.exit(main())
