"""The part of faults.py about the run folder: it is taken away, or its disk is full, while two ranks train in it."""

from __future__ import annotations

import contextlib
import resource
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.support.faults import same_run
from tests.support.processes import run_jobs, train_on_ranks

USER_ERROR = "exit code 2"
FOLDER_FAULTS: Mapping[str, Mapping[str, str]] = {
    "deleted": {"do": "remove", "path": ""},
    "replaced by an empty folder": {"do": "empty", "path": ""},
    "lock deleted": {"do": "remove", "path": ".lock"},
}


def folder_taken_away(recipe: Path, *, num_ranks: int, steps: Sequence[int]) -> dict[str, Any]:
    """Each fault at each step (from 1): all ranks end with exit code 2, what is gone is not made again, and the next
    start ends like the undisturbed run.
    """
    run = recipe.parent / "run"
    undisturbed = undisturbed_run(recipe, num_ranks)
    held = 0
    for fault in FOLDER_FAULTS.values():
        for step in steps:
            shutil.rmtree(run, ignore_errors=True)
            target = run / fault["path"]
            codes = exit_codes(recipe, {"step": step, "do": fault["do"], "path": str(target)}, num_ranks)
            is_gone = not target.exists() or (target.is_dir() and not any(target.iterdir()))
            train_on_ranks(["train", recipe], num_ranks=num_ranks)
            held += codes == {USER_ERROR} and is_gone and same_run(run, undisturbed)
    return {"held": held, "of": len(FOLDER_FAULTS) * len(steps), "control": "undisturbed: exit code 0"}


def full_disk(recipe: Path, *, num_ranks: int, steps: Sequence[int]) -> dict[str, Any]:
    """The system refuses the second half of a line of metrics.jsonl: exit code 2 on all ranks, only whole lines, and
    the run resumes bit-equal.
    """
    run = recipe.parent / "run"
    undisturbed = undisturbed_run(recipe, num_ranks)
    held = 0
    for step in steps:
        shutil.rmtree(run, ignore_errors=True)
        file = run / "metrics.jsonl"
        fault = {"step": step, "do": "limit_lines", "times": 2, "file": str(file)}
        codes = exit_codes(recipe, fault, num_ranks)
        is_whole = file.read_bytes().endswith(b"\n") or not file.stat().st_size
        train_on_ranks(["train", recipe], num_ranks=num_ranks)
        held += codes == {USER_ERROR} and is_whole and same_run(run, undisturbed)
    torn = "half a line" if is_torn_by_a_plain_write(recipe.parent / "plain.jsonl") else "a whole line"
    return {"held": held, "of": len(steps), "control": f"a plain write leaves {torn}"}


def is_torn_by_a_plain_write(path: Path) -> bool:
    """Whether the same refusal leaves a part of a line where a file is just written to."""
    line, before = b'{"step": 1, "loss": 2.5}\n' * 4, resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40, before[1]))
    try:
        with contextlib.suppress(OSError), path.open("ab") as file:
            file.write(line)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    return not path.read_bytes().endswith(b"\n")


def undisturbed_run(recipe: Path, num_ranks: int) -> Path:
    """The run without a fault, made once."""
    target = recipe.parent / "undisturbed"
    if not target.exists():
        train_on_ranks(["train", recipe], num_ranks=num_ranks)
        shutil.move(recipe.parent / "run", target)
    return target


def exit_codes(recipe: Path, fault: Mapping[str, Any], num_ranks: int) -> set[str]:
    """How the ranks of a run with a fault on rank 0 ended."""
    outputs, _ = run_jobs({"command": ["train", recipe], "fault": {"rank": 0, **fault}}, num_ranks=num_ranks)
    return {line for output in outputs for line in output.splitlines() if line.startswith("exit code ")}
