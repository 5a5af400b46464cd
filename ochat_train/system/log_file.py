"""`--log-file`: what a command prints, with times, also in a file."""

from __future__ import annotations

import datetime
import os
from pathlib import Path

from data_pipeline.files import cannot_write


class LogFile:
    """A file that lines are added to. Several ranks and commands may share one: each line is one write at its end.

    rank: of this process, written in lines of ranks other than 0. A file that can no longer be written (a full disk)
    ends nothing: `problem` then says why, and what follows is lost.
    """

    def __init__(self, path: Path, *, rank: int = 0) -> None:
        """Open the file, and create it if it is not there. Raises UserError where that cannot be done."""
        self.path = path
        self.problem: str | None = None
        self._mark = f"[rank {rank}] " if rank else ""
        try:
            self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        except OSError as error:
            raise cannot_write(path, error, "give --log-file another path") from error

    def add(self, text: str) -> None:
        """Add lines. text: already without characters that a terminal obeys."""
        if self.problem is not None:
            return
        now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        lines = "".join(f"{now} {self._mark}{line}\n" for line in text.splitlines() or [""])
        try:
            os.write(self._descriptor, lines.encode("utf-8", errors="backslashreplace"))
        except OSError as error:
            self.problem = f"{self.path}: cannot be written: {error.strerror}"

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)
