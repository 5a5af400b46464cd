"""Starts the ranks of a test: real processes, forked from a server that has imported the libraries already.

A rank that starts from nothing spends seconds on importing torch, transformers and DeepSpeed; hundreds of them would
take most of the time of the tests. On a GPU host ranks start from nothing, because CUDA does not survive a fork.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from multiprocessing.process import BaseProcess
from pathlib import Path

from tests.support.waiting import wait_for

PRELOADED = "tests.support.preloaded"  # imported once by the server


class ForkedRank:
    """A rank that was forked, with the part of subprocess.Popen that tests use. errors: keep stderr apart from
    stdout.
    """

    def __init__(self, module: str, arguments: list[str], environment: dict[str, str], *, errors: bool = False) -> None:
        self._logs = [_empty_file() for _ in range(1 + errors)]
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([PRELOADED])
        logs = [str(log) for log in self._logs]
        self._process: BaseProcess = context.Process(target=_run, args=(module, arguments, environment, logs))
        self._process.start()
        self._outputs: list[str] | None = None

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self) -> int:
        self._process.join()
        assert self._process.exitcode is not None
        return self._process.exitcode

    def communicate(self, timeout: float | None = None) -> tuple[str, str | None]:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("rank", timeout or 0.0, output=self._logs[0].read_bytes())
        if self._outputs is None:
            self._outputs = [log.read_text(encoding="utf-8", errors="replace") for log in self._logs]
            for log in self._logs:
                log.unlink()
        return self._outputs[0], self._outputs[1] if self._outputs[1:] else None

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def said(self) -> str:
        """What it has printed so far."""
        return "".join(log.read_text(encoding="utf-8", errors="replace") for log in self._logs)


Rank = subprocess.Popen[str] | ForkedRank


def wait_for_output(rank: Rank, text: str) -> None:
    """Wait until a running rank has printed a line with a text."""
    if isinstance(rank, ForkedRank):
        wait_for(lambda: text in rank.said() or rank.poll() is not None, seconds=120)
        assert text in rank.said()
    else:
        assert rank.stdout is not None
        assert any(text in line for line in rank.stdout)


def start_rank(module: str, arguments: list[str], environment: dict[str, str], *, fork: bool) -> Rank:
    """Start `python -m module arguments` with its own environment."""
    if fork:
        return ForkedRank(module, arguments, environment)
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _empty_file() -> Path:
    with tempfile.NamedTemporaryFile(prefix="rank-", suffix=".log", delete=False) as file:
        return Path(file.name)


def _run(module: str, arguments: list[str], environment: dict[str, str], logs: list[str]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.dup2(os.open(logs[0], os.O_WRONLY | os.O_APPEND), 1)
    os.dup2(os.open(logs[-1], os.O_WRONLY | os.O_APPEND), 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
