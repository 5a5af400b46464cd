"""Random damage to anything that a user can hand to `ochat` ends with a message and a documented exit code.

A sample of the cases of `benchmarks/fuzz.py`, which runs thousands.
"""

from __future__ import annotations

import json
from pathlib import Path

from tests.support.fuzz.run import Result
from tests.support.processes import process_environment
from tests.support.rank_processes import ForkedRank

SEED, CASES = 0, 15


def test_a_sample_of_damage_ends_with_a_message(tmp_path: Path) -> None:
    job = {"folder": str(tmp_path), "seed": SEED, "first": 0, "count": CASES, "controls": True}
    process = ForkedRank("tests.support.fuzz.run", [json.dumps(job)], process_environment({}))
    output, _ = process.communicate(timeout=300)
    assert process.wait() == 0, output[-3000:]
    [controls, *cases] = [json.loads(line) for line in output.splitlines() if line.startswith(("[", "{"))]
    assert controls == ["traceback", "signal 11", "too slow"], "the controls are seen"
    results = [Result(**case) for case in cases]
    assert len(results) == CASES
    bad = [result for result in results if not result.is_good]
    assert bad == [], "\n".join(f"{result}\n{result.detail}" for result in bad)
    outcomes = {result.outcome for result in results}
    assert outcomes == {"exit 0", "exit 2"}, "some damage is seen, and some does not matter"
