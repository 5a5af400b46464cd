"""Only one process trains in a run folder, and it notices when the folder is taken away from it."""

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

    A lock of the system on OUTPUT_DIR/.lock: it ends with this process, however that ends. Where the folder is a link,
    the folder that it leads to is locked and moved; the link stays.
    """

    def __init__(self, output_dir: Path) -> None:
        self._name = output_dir
        self._folder = real_folder(output_dir)
        self._file: TextIO | None = None

    def acquire(self) -> None:
        """Make the folder if it is not there, and lock it. Raises UserError if another process trains there."""
        self._folder = real_folder(self._name)
        self._file = _lock(self._folder, name=self._name)

    def require_held(self) -> None:
        """Raise UserError if the folder, or the lock in it, is no longer where the run writes.

        Then another process could train there, or does; and what this one wrote would make half a new folder.
        """
        assert self._file is not None, "acquired before the run writes anything"
        path = self._name / LOCK_FILE  # by the name that the run writes to: a link may lead elsewhere now
        try:
            is_here = os.path.samestat(os.fstat(self._file.fileno()), path.stat())
        except OSError:
            is_here = False
        if not is_here:
            raise _taken_away(self._name)

    def move_run_to(self, target: Path) -> None:
        """Give the locked folder the name `target`, and put an empty one, locked already, in its place.

        The new folder is locked before it gets its name, and the old one until it has lost its own, so that there is no
        moment at which another process could begin in either.
        """
        fresh = self._folder.with_name(f".{self._folder.name}.new")
        file = _lock(fresh, name=self._name)
        try:
            durable.rename(self._folder, target)
        except OSError as error:
            file.close()
            durable.remove_folder(fresh)
            raise UserError(
                "output_dir", f"{self._folder} cannot be moved to {target}: {error}", "use another folder"
            ) from None
        try:
            durable.rename(fresh, self._folder)
        except OSError:  # another process has made a folder there meanwhile, and begun
            file.close()
            raise _taken(self._name) from None
        self.close()
        self._file = file

    def close(self) -> None:
        """Let other processes train in the folder again."""
        if self._file is not None:
            self._file.close()
            self._file = None


def real_folder(path: Path) -> Path:
    """The folder that a link leads to, whether it exists or not; any other path unchanged."""
    return path.resolve() if path.is_symlink() else path


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


def _taken_away(folder: Path) -> UserError:
    what = "its lock was removed or replaced" if folder.is_dir() else "it is no longer there"
    return UserError(
        "output_dir",
        f"{folder}: the run folder was changed while the run trained: {what}. Another run could begin there, so "
        "nothing more is written",
        "if the folder was renamed, name it back and start again to resume; if it was deleted, the run is lost and "
        "starts over",
    )


def _taken(folder: Path) -> UserError:
    return UserError("output_dir", f"{folder}: another process trains there", "wait for it, or use another folder")
