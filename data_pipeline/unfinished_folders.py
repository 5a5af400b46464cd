"""A folder that is written under a hidden name and gets its own when it is complete, and what killed processes leave.

    DATA/
        prepared/                     complete, maybe of an earlier command
        .prepared.tmp-HOST-PID/       what process PID of HOST is writing, or was writing when it was killed
        .prepared.old-HOST-PID/       what it is replacing, between two renames

Nothing can be removed by a process that is killed. So the next command that writes the same folder removes it, where it
can tell that the process is gone: on the same host.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.errors import UserError
from data_pipeline.files import cannot_use, cannot_write, sync

# Names without a host are of earlier versions.
_NAME = re.compile(r"\.(?P<name>.+)\.(?P<kind>tmp|old)-(?:(?P<host>.+)-)?(?P<process>[0-9]+)")


@dataclass(frozen=True, kw_only=True)
class UnfinishedFolder:
    """A folder that a process has not finished. path: where it is. name: that it was going to have, or had (is_old).

    process: its id on `host`, None for this one.
    """

    path: Path
    name: str
    is_old: bool
    host: str | None
    process: int

    @property
    def is_abandoned(self) -> bool:
        """Whether its process has certainly ended; False for one of another host, which cannot be asked.

        A folder of this process's id that is there before this process makes one is of an earlier process.
        """
        return self.host is None and (self.process == os.getpid() or not _is_running(self.process))

    @property
    def text(self) -> str:
        """Whose it is, for people."""
        if self.host is not None:
            return f"process {self.process} of host {self.host} writes it, or was killed"
        return f"process {self.process} was killed while it wrote {self.name}"

    @property
    def remedy(self) -> str:
        """What to do about it, for people."""
        return "remove it" if self.host is None else "remove it if that process has ended"


@contextmanager
def replaced_folder(final: Path, *, owned: bool) -> Iterator[Path]:
    """A new folder that replaces `final` when the block succeeds, and is removed when it fails.

    owned: `final`, if it is there, may be replaced. Otherwise a folder with anything in it is a UserError.
    """
    final = final.resolve()  # a link to another disk stays a link
    if final.exists() and not owned and (not final.is_dir() or any(final.iterdir())):
        raise UserError(final, "already exists and was not made by this command", "choose another folder or remove it")
    ending = f"{_this_host()}-{os.getpid()}"
    temporary, old = (final.parent / f".{final.name}.{kind}-{ending}" for kind in ("tmp", "old"))
    try:
        _make(temporary, final)
        yield temporary
        for file in temporary.rglob("*"):
            sync(file)
        if final.exists():
            final.rename(old)
        temporary.rename(final)
        sync(final.parent)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException:
        if os.path.exists(old) and not os.path.exists(final):  # they raise nothing, for names that are too long too
            old.rename(final)
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _make(temporary: Path, final: Path) -> None:
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(final)
        temporary.mkdir()
    except FileExistsError as error:
        raise cannot_use(final.parent, error) from None
    except OSError as error:
        raise cannot_write(final, error) from None  # which is what the person named


def remove_abandoned(final: Path) -> None:
    """Remove what killed processes left behind while they were making the same folder.

    A folder that was being replaced gets its name back if nothing else has it; the new one replaces it in the end.
    """
    final = final.resolve()
    found = [one for one in unfinished_folders(final.parent) if one.name == final.name and one.is_abandoned]
    for folder in sorted(found, key=lambda one: not one.is_old):
        if folder.is_old and not final.exists():
            folder.path.rename(final)
        else:
            shutil.rmtree(folder.path, ignore_errors=True)


def unfinished_folders(parent: Path) -> list[UnfinishedFolder]:
    """What processes that run, or were killed, have of folders in `parent`; sorted by name."""
    paths = sorted(parent.iterdir()) if parent.is_dir() else []
    matches = [(path, match) for path in paths if (match := _NAME.fullmatch(path.name)) and path.is_dir()]
    return [
        UnfinishedFolder(
            path=path,
            name=match["name"],
            is_old=match["kind"] == "old",
            host=None if match["host"] in (None, _this_host()) else match["host"],
            process=int(match["process"]),
        )
        for path, match in matches
    ]


def _this_host() -> str:
    return platform.node() or "localhost"


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # of another user
        return True
    return True
