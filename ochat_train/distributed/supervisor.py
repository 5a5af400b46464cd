"""A training command that is waited for until all its processes are gone, and started again after a crash.

The `deepspeed` command returns on Ctrl-C while its ranks still write their checkpoint, and with 0 where its own
launcher was killed. Here the command gets a process group, whose processes become children of this one when their
parents end: so each of them is waited for, and its exit code counts. Ranks whose launcher waits for them, and then ends
with 1, leave their codes in a folder (launch.py).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType

from data_pipeline.errors import UserError
from ochat_train.distributed.launch import EXIT_CODES, exit_codes_left, free_port
from ochat_train.system import exits
from ochat_train.system.messages import print_error
from ochat_train.system.stop_signals import stop_signals

_RUNNER = "deepspeed.launcher.runner"  # the module behind the `deepspeed` command
_HOSTFILE = "/job/hostfile"  # that it reads where `--hostfile` names no other
DEEPSPEED_PORT = 29500  # of rank 0, where `--master_port` names no other
_POLL_SECONDS = 0.1
_MOST_STOPS = 2  # the first finishes the step, the second ends the ranks; from the third on they are killed
_SET_CHILD_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER of Linux's prctl
# Not started again: done, the user's to repair, trained but not on the Hub (`train.push_to_hub` has its own retries).
_FINAL = (exits.DONE, exits.USER_ERROR, exits.NOT_PUSHED)


def supervise(command: Sequence[str], *, retries: int, pause_seconds: float, say: Callable[[str], None]) -> int:
    """Run a command to its end and return its exit code; start it again at most `retries` times after a crash.

    pause_seconds: before another attempt, so that GPUs and ports of the earlier one become free.

    SIGINT and SIGTERM go to the whole group of the command, which is never started again then. Call it in the main
    thread of a process that has no other children. Raises UserError for a command that cannot be started.
    """
    _adopt_orphans()
    stop = _Stop()
    with stop:
        for attempt in range(retries + 1):
            code = _run(_with_free_port(command), stop)
            if stop.num_asked or code in _FINAL or attempt == retries:
                return code
            left = f"{retries - attempt} of {retries} retries left"
            say(f"ended with {_meaning(code)}; starting again in {pause_seconds:g} s ({left})")
            if stop.wait(pause_seconds):
                return code
    raise AssertionError("the last attempt returns")


class _Stop:
    """Signals that ask to stop, and the group that they are passed on to."""

    def __init__(self) -> None:
        self.num_asked = 0
        self.group: int | None = None
        self.ends_leader = False  # before SIGINT is passed on

    def __enter__(self) -> None:
        self._previous = {number: signal.signal(number, self._handle) for number in stop_signals()}

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP and self.num_asked:  # a terminal that ends may send it twice
            return
        self.num_asked += 1
        if self.group is None:
            return
        if self.num_asked == 1:
            text = "stopping: ranks finish their step and write a checkpoint; once more ends them without one"
            os.write(2, f"ochat launch: {text}\n".encode())  # print could be interrupted inside itself
        passed_on = signal.SIGTERM if number == signal.SIGHUP else number
        if passed_on == signal.SIGINT and self.ends_leader:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.group, signal.SIGTERM)
        _signal_group(self.group, passed_on if self.num_asked <= _MOST_STOPS else signal.SIGKILL)

    def wait(self, seconds: float) -> bool:
        """Sleep; whether somebody asked to stop meanwhile."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self.num_asked:
            time.sleep(min(_POLL_SECONDS, seconds))
        return self.num_asked > 0


def _run(command: Sequence[str], stop: _Stop) -> int:
    """Start a command in a group, wait until no process of the group is left, and return the code of all."""
    with tempfile.TemporaryDirectory(prefix="ochat-launch-") as folder:
        launcher, others = _run_to_end(command, stop, {**os.environ, EXIT_CODES: folder})
        ranks = exit_codes_left(Path(folder))
    if launcher == exits.BUG and exits.BUG in ranks:
        return exits.BUG  # that of the first rank which ended, and what it did to the others does not count
    return exit_code(launcher, [*ranks, *others])


def _run_to_end(command: Sequence[str], stop: _Stop, environment: Mapping[str, str]) -> tuple[int, list[int]]:
    """The code of the command, and those of the processes of its group that outlived their parents."""
    try:
        process = subprocess.Popen(command, start_new_session=True, env=environment)
    except OSError as error:
        raise UserError(command[0], f"cannot be started: {error.strerror}", "activate the environment") from None
    stop.group, stop.ends_leader = process.pid, _is_deepspeed_on_one_host(command)
    if stop.num_asked:  # between the last attempt and this one
        _signal_group(process.pid, signal.SIGTERM)
    codes: dict[int, int] = {}
    while _has_group(process.pid):
        _reap(codes)
        time.sleep(_POLL_SECONDS)
    _reap(codes)
    stop.group = None
    process.returncode = codes.get(process.pid, 0)  # reaped here; Popen need not wait
    return process.returncode, [code for pid, code in codes.items() if pid != process.pid]


def exit_code(launcher: int, ranks: Sequence[int]) -> int:
    """The exit code of a launcher, its ranks and processes that outlived it; negative ones are signals, as in
    subprocess.

    A launcher that was signalled says nothing about its ranks, and DeepSpeed's even ends with 0 where its own child was
    killed: then a rank that ended otherwise decides.
    """
    failed = [code for code in ranks if code != 0]
    known = [code for code in failed if code in (exits.STOPPED, exits.LOST_RANKS, exits.NOT_PUSHED, exits.USER_ERROR)]
    if launcher in (0, 1) or launcher < 0:
        launcher = next(iter(known or failed), launcher)
    return launcher if launcher >= 0 else 128 - launcher


def _reap(codes: dict[int, int]) -> None:
    """Note the exit codes of all children that have ended."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        codes[pid] = os.waitstatus_to_exitcode(status)


def _has_group(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def _signal_group(group: int, number: int) -> None:
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return


def _adopt_orphans() -> None:
    """Become the parent of processes whose parent ends, so that they can be waited for (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _with_free_port(command: Sequence[str]) -> list[str]:
    """A `deepspeed` command on one host with a free port, where another run uses DeepSpeed's."""
    named = any(part.split("=")[0] == "--master_port" for part in command)
    if not _is_deepspeed_on_one_host(command) or named or _is_free(DEEPSPEED_PORT):
        return list(command)
    port = free_port()
    print_error(f"ochat launch: port {DEEPSPEED_PORT} is in use, perhaps by another run on this host; taking {port}")
    at = command.index(_RUNNER) if _RUNNER in command else 0
    return [*command[: at + 1], "--master_port", str(port), *command[at + 1 :]]


def _is_deepspeed_on_one_host(command: Sequence[str]) -> bool:
    """Whether a command is `deepspeed` without other hosts. It passes no signal on then, and answers SIGINT with a
    traceback.
    """
    is_deepspeed = Path(command[0]).name == "deepspeed" or _RUNNER in command
    names_hosts = any(part.split("=")[0] in ("--hostfile", "-H", "--launcher") for part in command)
    return is_deepspeed and not names_hosts and not Path(_HOSTFILE).exists()


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port of a run that has just ended is free
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True


def _meaning(code: int) -> str:
    """An exit code in words."""
    if code > 128:
        number = code - 128 if code - 128 in set(signal.Signals) else 256 - code  # DeepSpeed's: -9 becomes 247
        if number in set(signal.Signals):
            return f"exit code {code} (a process was killed by {signal.Signals(number).name})"
    words = {exits.STOPPED: "stopped by a signal", exits.LOST_RANKS: "another rank died or hangs", exits.BUG: "a bug"}
    return f"exit code {code}" + (f" ({words[code]})" if code in words else "")
