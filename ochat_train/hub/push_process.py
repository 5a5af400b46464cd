"""The process beside a run, as an operating system process: started, asked whether it runs, ended."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from ochat_train.distributed.launch import without_launcher
from ochat_train.hub.push_state import ProcessStatus

_CPU_ONLY = {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}


class PushProcess:
    """At most one process at a time. end_seconds: how long it may take to end by itself when it is told to."""

    def __init__(self, *, end_seconds: float = 5.0) -> None:
        self._end_seconds = end_seconds
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def status(self) -> ProcessStatus:
        """Whether it runs, and with which code the last one has ended."""
        code = None if self._process is None else self._process.poll()
        return ProcessStatus(is_running=self._process is not None and code is None, exit_code=code)

    def start(self, command: Sequence[str], *, log: Path) -> None:
        """Start `command` without a GPU. `log` gets what it prints. Raises OSError.

        It has its own session, because signals for the run's process group are not meant for it.
        """
        assert not self.status.is_running, "one at a time"
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=without_launcher(os.environ) | _CPU_ONLY,
                start_new_session=True,
            )

    def end(self) -> None:
        """End the process if it runs: SIGTERM, and SIGKILL if it does not listen."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(self._end_seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
