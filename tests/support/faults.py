"""Faults of whole runs, for the tests and for benchmarks/faults.py: ranks that are killed at random, and what is
left.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from ochat_train.checkpoint.state import CheckpointManifest, list_checkpoints, verify
from ochat_train.export.trained import load_trained_weights
from tests.support.processes import finish, start_ranks
from tests.support.rank_processes import Rank
from tests.support.run_folder import metrics
from tests.support.waiting import wait_for

SLOW_STEP_SECONDS = 0.1  # so that a kill finds the run at any of its steps
HELD_STEP = 13  # of the 16 of tests/support/disturbed_runs.py


def slow_steps(recipe: Path) -> dict[str, Any]:
    """The fault of a slow run: its steps take a tenth of a second more, and it waits for `release` before its last
    ones, so that a test that gets little of the processor still finds it running. None where it is released already.
    """
    file = _release_file(recipe)
    return {} if file.exists() else {"slow": SLOW_STEP_SECONDS, "hold": [HELD_STEP, str(file)]}


def release(recipe: Path) -> None:
    """Let slow runs of this recipe end."""
    _release_file(recipe).touch()


def _release_file(recipe: Path) -> Path:
    return recipe.with_suffix(".released")


def start_slow_run(recipe: Path, *arguments: str, num_ranks: int = 2) -> list[Rank]:
    """Start `ochat train` on ranks with `slow_steps`."""
    jobs = [{"command": ["train", str(recipe), *arguments], "fault": slow_steps(recipe)}]
    return start_ranks("tests.support.train_worker", json.dumps(jobs), num_ranks=num_ranks)


def kill_and_resume(
    recipe: Path, output_dir: Path, *, kills: int, rng: random.Random, num_ranks: int = 2
) -> list[dict[str, Any]]:
    """Train to the end while a random rank is killed `kills` times at random times; each start resumes by itself.

    Returns for each kill: the rank, the last step written before it, and the exit codes of all ranks.
    """
    done: list[dict[str, Any]] = []
    while len(done) < kills:
        ranks = start_slow_run(recipe, num_ranks=num_ranks)
        wait_for_a_step(output_dir, ranks)
        time.sleep(rng.uniform(0.0, 8 * SLOW_STEP_SECONDS))
        victim = rng.randrange(num_ranks)
        assert ranks[victim].poll() is None, "the run was over before it was killed"
        os.kill(ranks[victim].pid, signal.SIGKILL)
        _, codes = finish(ranks)
        done.append({"rank": victim, "step": num_steps(output_dir), "exit_codes": codes})
    release(recipe)
    outputs, codes = finish(start_slow_run(recipe, num_ranks=num_ranks))
    assert codes == [0] * num_ranks, outputs[0][-3000:]
    return done


def wait_for_a_step(output_dir: Path, ranks: list[Rank]) -> None:
    """Wait until a run that was just started has done another step, or is over."""
    before = num_steps(output_dir)
    wait_for(lambda: num_steps(output_dir) not in (0, before) or ranks[0].poll() is not None, seconds=90)


def num_steps(output_dir: Path) -> int:
    """Steps in a run's metrics."""
    try:
        return len((output_dir / "metrics.jsonl").read_text().splitlines())
    except OSError:
        return 0


def same_run(found: Path, expected: Path) -> bool:
    """Whether two finished runs have the same weights, bit for bit, and the same steps in their metrics."""
    weights, truth = (load_trained_weights(list_checkpoints(run)[-1]) for run in (found, expected))
    same_weights = weights.keys() == truth.keys() and all(
        torch.equal(value, truth[key]) for key, value in weights.items()
    )
    steps = [
        [(line["step"], line["loss"], line["learning_rate"]) for line in metrics(run)] for run in (found, expected)
    ]
    return same_weights and steps[0] == steps[1]


def flip_bits(folder: Path, times: int, rng: random.Random) -> dict[str, int]:
    """Flip one bit of a checkpoint's files at a time.

    found: how often `verify` named the file. torch_files: how often it was a file of torch's, and silent: how often
    torch.load read that silently.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    outcome = {"found": 0, "torch_files": 0, "silent": 0}
    for number in range(times):
        path = files[number % len(files)]
        whole = path.read_bytes()
        flipped = bytearray(whole)
        flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
        path.write_bytes(flipped)
        problem = verify(folder)
        outcome["found"] += problem is not None and path.name in problem
        if path.suffix == ".pt":
            outcome["torch_files"] += 1
            with contextlib.suppress(Exception):
                torch.load(path, weights_only=False)
                outcome["silent"] += 1
        path.write_bytes(whole)
    assert verify(folder) is None
    return outcome


def give_fresh_random_states(checkpoint: Path) -> None:
    """Replace the saved random number states by those of a new process, with a manifest that agrees."""
    manifest = CheckpointManifest.load(checkpoint)
    for file in checkpoint.glob("rng-*.safetensors"):
        generator = torch.Generator().manual_seed(99)
        save_file({"cpu": generator.get_state()}, str(file))
        content = file.read_bytes()
        manifest.files[file.name] = (len(content), hashlib.sha256(content).hexdigest())
    manifest.write(checkpoint)
