"""SIGTERM, Ctrl-C, the end of the terminal (SIGHUP) or of the launcher: finish the step, write a checkpoint, exit.

A second signal ends the process at once.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path
from types import FrameType
from typing import Any

from ochat_train.system.stop_signals import stop_signals

_WHAT_COMES = "the step is finished and a checkpoint is written; a second signal ends the run without it"
# One request may arrive several times: on Ctrl-C a rank gets SIGINT from the terminal and SIGTERM from its launcher. A
# scheduler may send SIGTERM to all processes, and it comes again from each launcher. Nobody types SIGTERM that fast.
_RELAY_SECONDS = 2.0


class StopRequest:
    """Whether this process was asked to stop.

    Signals ask between `listen` and `close`; before and after, they end the process.

    reason: what asked, None where nothing did.
    """

    def __init__(self) -> None:
        self.reason: str | None = None
        self._first: tuple[int, float] | None = None
        self._launchers = _launchers()
        self._previous: dict[int, Any] = {}

    def listen(self) -> None:
        """Install the handlers, in the main thread."""
        self._previous = {number: signal.signal(number, self._handle) for number in stop_signals()}

    def close(self) -> None:
        """Restore the handlers from before `listen`."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP and self._first is not None:  # a terminal that ends may send it twice
            return
        now = time.monotonic()
        if self._first is not None and not self._is_relayed(number, now):
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self._first = self._first or (number, now)
        self._ask(signal.Signals(number).name)

    def _is_relayed(self, number: int, now: float) -> bool:
        """Whether a later signal is the first request once more, and not a second one."""
        assert self._first is not None
        return now - self._first[1] <= _RELAY_SECONDS and (number == signal.SIGTERM or number != self._first[0])

    def notice_ended_launcher(self) -> None:
        """Ask to stop if the launcher has ended: SIGTERM ends the `deepspeed` command without telling its ranks."""
        if self.reason is None and _launchers() != self._launchers:
            self._ask("the end of the launcher")

    def _ask(self, reason: str) -> None:
        if self.reason is None and os.environ.get("RANK", "0") == "0":
            with contextlib.suppress(OSError):  # not by print, which may be what was interrupted
                os.write(2, f"\nochat train: stopping ({reason}): {_WHAT_COMES}\n".encode())
        self.reason = self.reason or reason


def _launchers() -> tuple[int, ...]:
    """Process ids of parent and grandparent; only the parent's on systems without /proc."""
    parent = os.getppid()
    try:
        fields = Path(f"/proc/{parent}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        return parent, int(fields[1])
    except (OSError, ValueError, IndexError):
        return (parent,)
