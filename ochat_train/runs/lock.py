"""Only one process trains in a run folder."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import TextIO

from data_pipeline.errors import UserError
from ochat_train.system import durable

LOCK_FILE = ".lock"


class RunLock:
    """Keeps other processes out of a run folder, from `acquire` to `close`.

    A lock of the system on OUTPUT_DIR/.lock: it ends with this process, however that ends.
    """

    def __init__(self, output_dir: Path) -> None:
        self._output_dir = output_dir
        self._file: TextIO | None = None

    def acquire(self) -> None:
        """Make the folder if it is not there, and lock it. Raises UserError if another process trains there."""
        self._file = _lock(self._output_dir, name=self._output_dir)

    def move_run_to(self, target: Path) -> None:
        """Give the locked folder the name `target`, and put an empty one, locked already, in its place.

        The new folder is locked before it gets its name, and the old one until it has lost its own, so that there is no
        moment at which another process could begin in either.
        """
        fresh = self._output_dir.with_name(f".{self._output_dir.name}.new")
        file = _lock(fresh, name=self._output_dir)
        try:
            durable.rename(self._output_dir, target)
        except OSError as error:
            file.close()
            durable.remove_folder(fresh)
            raise UserError(
                "output_dir", f"{self._output_dir} cannot be moved to {target}: {error}", "use another folder"
            ) from None
        try:
            durable.rename(fresh, self._output_dir)
        except OSError:  # another process has made a folder there meanwhile, and begun
            file.close()
            raise _taken(self._output_dir) from None
        self.close()
        self._file = file

    def close(self) -> None:
        """Let other processes train in the folder again."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _lock(folder: Path, *, name: Path) -> TextIO:
    """Lock a folder; the lock lives as long as the file that is returned. name: what messages call the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK_FILE
    file = path.open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        is_still_there = path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat())
    except OSError:
        is_still_there = False
    if not is_still_there:  # held by another process, or moved away by one after it was opened here
        file.close()
        raise _taken(name)
    return file


def _taken(folder: Path) -> UserError:
    return UserError("output_dir", f"{folder}: another process trains there", "wait for it, or use another folder")
