"""Commands that the code under test starts with `python -m`, forked by tests/support/rank_processes.py instead.

Importing the libraries takes a cold process many seconds, and an ablation starts a process for every training and every
score. Each command still has its own process, environment and log.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

import torch

from tests.support.rank_processes import ForkedRank

_LOCK = threading.Lock()  # multiprocessing looks at all its processes when it starts one: one thread at a time


def run_forked(
    command: Sequence[str], *, env: Mapping[str, str], stdout: TextIO, stderr: int, check: bool
) -> subprocess.CompletedProcess[Any]:
    """The counterpart of `subprocess.run` for `python -m module arguments`; stderr must go where stdout goes."""
    assert list(command[:2]) == [sys.executable, "-m"], command
    assert (stderr, check) == (subprocess.STDOUT, False)
    if torch.cuda.is_available():  # CUDA does not survive a fork
        return subprocess.run(command, env=env, stdout=stdout, stderr=stderr, check=check)
    environment = {**env, "OMP_NUM_THREADS": "1", "TORCHDYNAMO_DISABLE": "1"}
    with _LOCK:
        process = ForkedRank(command[2], list(command[3:]), environment)
    try:
        deadline = time.monotonic() + 300.0
        while (code := _poll(process)) is None and time.monotonic() < deadline:
            time.sleep(0.02)
        assert code is not None, f"{command} runs for more than 300 s"
        with _LOCK:
            text, _ = process.communicate()
    finally:
        with _LOCK:
            process.kill()
    stdout.write(text)
    return subprocess.CompletedProcess(command, code)


def _poll(process: ForkedRank) -> int | None:
    with _LOCK:
        return process.poll()
