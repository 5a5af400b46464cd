"""Commands and ranks in separate processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from ochat_train.distributed.launch import free_port
from tests.support.rank_processes import ForkedRank, Rank, start_rank

ROOT = Path(__file__).resolve().parents[2]


PYTHONPATH = os.pathsep.join(
    [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
)  # of processes that tests start


def ochat(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the `ochat` command in a separate process, as a user does; it is forked where ranks are."""
    module, texts = "tests.support.ochat_command", [*map(str, arguments)]
    if torch.cuda.is_available():
        return run([sys.executable, "-m", module, *texts], **environment)
    process = ForkedRank(module, texts, process_environment(environment), errors=True)
    try:
        output, errors = process.communicate(timeout=600)
    finally:
        process.kill()
    return subprocess.CompletedProcess(["ochat", *texts], process.wait(), output, errors)


def train_on_ranks(*commands: list[Any], num_ranks: int = 2) -> None:
    """Run `ochat` commands one after the other on ranks that are started once; all must succeed."""
    outputs, codes = run_jobs(*({"command": command} for command in commands), num_ranks=num_ranks)
    exits = [line for output in outputs for line in output.splitlines() if line.startswith("exit code ")]
    assert codes == [0] * num_ranks, "".join(outputs)[-8000:]
    assert exits == ["exit code 0"] * num_ranks * len(commands), "".join(outputs)[-8000:]


def run_jobs(*jobs: dict[str, Any], num_ranks: int = 2) -> tuple[list[str], list[int]]:
    """Run jobs (see train_worker.py) on ranks that are started once; what each rank printed, and its exit code."""
    texts = [{**job, "command": [str(argument) for argument in job["command"]]} for job in jobs]
    return finish(start_ranks("tests.support.train_worker", json.dumps(texts), num_ranks=num_ranks))


def finish(ranks: list[Rank], *, seconds: float = 300.0) -> tuple[list[str], list[int]]:
    """Wait for ranks; what each of them printed, and its exit code. A rank that is stopped is killed, as launchers
    do.
    """
    outputs = []
    try:
        for rank in ranks:
            outputs.append(rank.communicate(timeout=seconds)[0])
    finally:
        for rank in ranks:
            rank.kill()
    return outputs, [rank.wait() for rank in ranks]


def start_ranks(module: str, *arguments: str, num_ranks: int, **environment: str) -> list[Rank]:
    """Start a module on ranks without a launcher (which takes longer to start than the ranks do)."""
    world = {"WORLD_SIZE": str(num_ranks), "LOCAL_WORLD_SIZE": str(num_ranks), "MASTER_ADDR": "127.0.0.1"}
    shared = process_environment({**world, "MASTER_PORT": str(free_port()), **environment})
    fork = not torch.cuda.is_available()
    return [
        start_rank(module, [*map(str, arguments)], {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}, fork=fork)
        for rank in range(num_ranks)
    ]


def process_environment(changes: dict[str, str]) -> dict[str, str]:
    """The environment of processes that tests start."""
    common = {**os.environ, "PYTHONPATH": PYTHONPATH, "OMP_NUM_THREADS": "1"}
    # nothing is compiled on a CPU, and DeepSpeed would import the compiler: two seconds
    if not torch.cuda.is_available():
        common["TORCHDYNAMO_DISABLE"] = "1"
    return {**common, **changes}


def run(command: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command in the repository's root and return it finished; output is kept as text."""
    env = process_environment(environment)
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=600, check=False)
