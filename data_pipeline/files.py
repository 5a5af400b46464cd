"""Files on disk: hashes, writes that survive a power cut, and what to say of a write that failed."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data_pipeline.errors import UserError

_OS_ERROR = re.compile(r"\(os error (\d+)\)")
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # a full disk, a used up quota, a limit on the size of files
# permissions, a disk that is mounted read-only, a link that leads to itself, a name that no disk can hold
_UNUSABLE = (
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ELOOP, errno.ENAMETOOLONG),
    *(errno.ENOTDIR, errno.EISDIR),  # a file in the place of a folder, or the other way round
)
MAKE_ROOM = "make room there, and run the command again"
_CHANGE_RIGHTS = "change its permissions or those of its folder, or name another one"


def sha256_of_file(path: Path) -> str:
    """sha256 of a file's bytes, as hexadecimal text."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def sync(path: Path) -> None:
    """Wait until a file's bytes, or a folder's entries, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_out_of_room(error: OSError) -> bool:
    """Whether a write failed because there is no room for it."""
    return error.errno in _NO_ROOM


def is_unusable(error: OSError) -> bool:
    """Whether a file could not be used for a reason that the user can change: its permissions, its place, its name."""
    return error.errno in _UNUSABLE


def os_error_of(error: BaseException) -> OSError | None:
    """The OSError behind an exception of a library that is written in Rust, such as safetensors, which says so in its
    text alone: `No space left on device (os error 28)`. None for other exceptions.
    """
    found = _OS_ERROR.search(str(error))
    return OSError(int(found[1]), os.strerror(int(found[1]))) if found else None


def cannot_use(path: Path | str, error: OSError) -> UserError:
    """A file that cannot be used as an error that says which and why."""
    return UserError(path, f"cannot be used: {reason_of(error)}", _CHANGE_RIGHTS)


def reason_of(error: OSError) -> str:
    """Why something failed, in the words of the system: libraries put their own around them."""
    return os.strerror(error.errno) if error.errno in (*_NO_ROOM, *_UNUSABLE) else error.strerror or str(error)


def free_bytes(path: Path) -> int | None:
    """Free bytes on the disk of a file or folder, which need not exist. None where the system does not say."""
    place = next((place for place in (path, *path.absolute().parents) if place.exists()), None)
    try:
        return None if place is None else shutil.disk_usage(place).free
    except OSError:
        return None


def cannot_write(path: Path | str | None, error: OSError, remedy: str | None = None, *, option: str = "") -> UserError:
    """A failed write as an error that says where, why, how much room is left there, and what to do.

    path: None if not known. remedy: None for the one that the reason suggests. option: that named the path, which the
    message then begins with.
    """
    has_room = not is_out_of_room(error)
    free = None if path is None or has_room else free_bytes(Path(path))
    room = "" if free is None else f" ({free:,} bytes are free there)"
    place = "the output" if path is None else f"{option} {path}".lstrip()
    if remedy is None:
        remedy = _CHANGE_RIGHTS if has_room else MAKE_ROOM
    return UserError(place, f"cannot be written: {reason_of(error)}{room}", remedy)


def file_error(error: BaseException, place: Path | str | None = None) -> UserError | None:
    """An exception as an error with a message where a full disk or permissions are behind it; None for others.

    place: named where the exception names no file.
    """
    found = error if isinstance(error, OSError) else os_error_of(error)
    if found is None or not (is_out_of_room(found) or is_unusable(found)):
        return None
    place = found.filename or place
    return cannot_write(place, found) if is_out_of_room(found) else cannot_use(place or "the output", found)


@contextmanager
def explained_writes(path: Path) -> Iterator[None]:
    """Turns an OSError of the block into `cannot_write`. path: named where the error names no file itself."""
    try:
        yield
    except OSError as error:
        name = error.filename if isinstance(error.filename, str) else path
        raise cannot_write(name, error) from error


def write_text(path: Path, text: str) -> None:
    """Write a small text file. An OSError names the file."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        error.filename = str(path)
        raise
