"""Each of the `deepspeed` command, its launcher and the ranks is a process, as a user starts them, but forked from this
one (see rank_processes.py): from nothing, each would spend seconds on importing the libraries. It leads a group, as a
job of a shell does.
"""

from __future__ import annotations

import os
import runpy
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

from deepspeed.launcher import runner

_POPEN = subprocess.Popen


class Forked:
    """The part of `subprocess.Popen` that DeepSpeed uses, for `python -u -m module arguments`."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str]) -> None:
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            os._exit(_run(command[3], command[4:], env))

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self) -> int:
        while (code := self.poll()) is None:
            time.sleep(0.02)
        return code


def start(command: Sequence[str], *arguments: Any, **options: Any) -> Any:
    """The counterpart of `subprocess.Popen`: ours are forked."""
    if list(command[:3]) == [sys.executable, "-u", "-m"]:
        return Forked(command, options["env"])
    return _POPEN(command, *arguments, **options)


def _run(module: str, arguments: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run a module as a new process would; its exit code."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [module, *arguments]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


if __name__ == "__main__":
    os.setsid()
    subprocess.Popen = start  # type: ignore[assignment,misc]
    runner.main(sys.argv[1:])
