"""Runs programs of a model, each in a separate process that can do nothing but compute (`confined.py`)."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.errors import UserError
from ochat_train.system.sizes import GIB

CONFINEMENT = "no network, no other processes, no signals, files only to read, an empty environment"
_CHILD = Path(__file__).with_name("confined.py")
_MOST_AT_ONCE = 8
_MOST_OUTPUT = 4096  # bytes: a few lines
_POLL_SECONDS = 0.01


@dataclass(frozen=True, kw_only=True)
class CodeLimits:
    """Of one program. cpu_seconds: of computing, which other work of the machine does not shorten. wall_seconds: until
    it is killed, whatever it waits for.
    """

    cpu_seconds: int = 10
    wall_seconds: float = 60.0
    memory_bytes: int = 2 << 30

    @property
    def text(self) -> str:
        """In words."""
        return f"{self.cpu_seconds} s of CPU time, {self.memory_bytes / GIB:g} GiB"


@dataclass(frozen=True, kw_only=True)
class Program:
    """What a model wrote, and its test. code: a module that defines the function `entry_point`. test: a program that
    knows this function by its name and as `_candidate`, and fails by an exception; without one, the code has to run to
    its end. Arguments and results are plain values.
    """

    code: str
    entry_point: str = "_none"
    test: str = ""


_TRIAL = Program(
    code="import collections, math, typing\ndef total(digits): return sum(map(int, digits))",
    entry_point="total",
    test="assert total('123') == 6",
)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of a program. why: `passed`, or what it ended with."""

    has_passed: bool
    why: str


def run_all(programs: Sequence[Program], limits: CodeLimits | None = None) -> list[Outcome]:
    """The outcomes of programs, several at once. A program passes if its test runs to its end without an exception.

    Raises UserError where this system cannot confine a program; then none is run.
    """
    limits = limits or CodeLimits()
    check_confinement(limits)
    with ThreadPoolExecutor(min(_MOST_AT_ONCE, max(1, (os.cpu_count() or 1) // 2))) as pool:
        return list(pool.map(lambda program: run_program(program, limits), programs))


def check_confinement(limits: CodeLimits) -> None:
    """Raise UserError unless a harmless program runs confined."""
    outcome = run_program(_TRIAL, limits)
    if not outcome.has_passed:
        raise UserError(
            "--allow-code-execution",
            f"code cannot be kept apart on this system: {outcome.why}",
            "use Linux on x86-64 or arm64 with seccomp, without a container that forbids it",
        )


def run_program(program: Program, limits: CodeLimits) -> Outcome:
    """Run one program, which may do whatever it wants."""
    secret = secrets.token_hex(16)
    job = {
        "code": program.code,
        "entry_point": program.entry_point,
        "cpu_seconds": limits.cpu_seconds,
        "memory_bytes": limits.memory_bytes,
    }
    with tempfile.TemporaryDirectory(prefix="ochat-code-") as folder:
        empty = Path(folder, "empty")
        empty.mkdir()
        job_file = Path(folder, "job.json")
        job_file.write_text(json.dumps(job), encoding="utf-8")
        process = subprocess.Popen(
            [sys.executable, "-I", "-B", str(_CHILD), str(job_file)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=empty,
            env={},
            start_new_session=True,
        )
        _hand_in(process, {"program": program.test, "secret": secret})
        is_in_time = _wait(process, limits.wall_seconds)
        lines = _end(process)
    return _outcome(lines, secret, is_in_time=is_in_time, code=process.returncode)


def _hand_in(process: subprocess.Popen[bytes], test: dict[str, str]) -> None:
    """Give the test to the process that runs it; the one that runs the model's code never has it."""
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError), process.stdin as stream:
        stream.write(json.dumps(test).encode("ascii"))


def _wait(process: subprocess.Popen[bytes], seconds: float) -> bool:
    """Wait for its end without collecting it, so that its group keeps its number. Returns whether it ended.

    What it writes is not read meanwhile: the pipe holds little, and a program that fills it waits for its end.
    """
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            return True
        time.sleep(_POLL_SECONDS)
    return False


def _end(process: subprocess.Popen[bytes]) -> list[str]:
    """Kill the whole group, collect the process, and return what it said."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert process.stdout is not None
    with process.stdout as stream:
        os.set_blocking(stream.fileno(), False)
        try:
            output = os.read(stream.fileno(), _MOST_OUTPUT)
        except BlockingIOError:
            output = b""
    return output.decode("utf-8", "replace").splitlines()


def _outcome(lines: Sequence[str], secret: str, *, is_in_time: bool, code: int) -> Outcome:
    if not lines or lines[0] != "confined":
        why = lines[0] if lines else f"its process ended with {code} before it began"
        return Outcome(has_passed=False, why=why)
    if not is_in_time:
        return Outcome(has_passed=False, why="out of time")
    if secret in lines[1:]:
        return Outcome(has_passed=True, why="passed")
    if lines[1:] == ["out of CPU time"] or code in (-signal.SIGXCPU, -signal.SIGKILL):
        return Outcome(has_passed=False, why="out of CPU time")
    return Outcome(has_passed=False, why="failed")
