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


@contextmanager
def replaced_folder(final: Path, *, owned: bool) -> Iterator[Path]:
    """A new folder that replaces `final` when the block succeeds, and is removed when it fails.

    owned: `final`, if it is there, may be replaced. Otherwise a folder with anything in it is a UserError.
    """
    final = final.resolve()  # a link to another disk stays a link
    if final.exists() and not owned and (not final.is_dir() or any(final.iterdir())):
        raise UserError(final, "already exists and was not made by this command", "choose another folder or remove it")
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise cannot_use(final.parent, error) from None
    _clear_leftovers(final)
    temporary = final.parent / f".{final.name}.tmp-{os.getpid()}"
    old = final.parent / f".{final.name}.old-{os.getpid()}"
    temporary.mkdir()
    try:
        yield temporary
        for file in temporary.rglob("*"):
            sync(file)
        if final.exists():
            final.rename(old)
        temporary.rename(final)
        sync(final.parent)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException:
        if old.exists() and not final.exists():
            old.rename(final)
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _clear_leftovers(final: Path) -> None:
    """Remove what killed processes left behind while they were making the same folder.

    A folder that was being replaced gets its name back if nothing else has it; the new one replaces it in the end.
    """
    for leftover in [*final.parent.glob(f".{final.name}.old-*"), *final.parent.glob(f".{final.name}.tmp-*")]:
        process = leftover.name.rpartition("-")[2]
        if process != str(os.getpid()) and Path("/proc", process).exists():
            continue
        if leftover.name.startswith(f".{final.name}.old-") and not final.exists():
            leftover.rename(final)
        else:
            shutil.rmtree(leftover, ignore_errors=True)


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
    remedy = "change its permissions or those of its folder, or name another one"
    return UserError(path, f"cannot be used: {error.strerror or error}", remedy)


def free_bytes(path: Path) -> int | None:
    """Free bytes on the disk of a file or folder, which need not exist. None where the system does not say."""
    place = next((place for place in (path, *path.absolute().parents) if place.exists()), None)
    try:
        return None if place is None else shutil.disk_usage(place).free
    except OSError:
        return None


def cannot_write(path: Path | str | None, error: OSError, remedy: str = MAKE_ROOM) -> UserError:
    """A failed write as an error that says where, why, and how much room is left there. path: None if not known."""
    free = None if path is None else free_bytes(Path(path))
    room = "" if free is None else f" ({free:,} bytes are free there)"
    return UserError(
        "the output" if path is None else path, f"cannot be written: {error.strerror or error}{room}", remedy
    )


@contextmanager
def explained_writes(path: Path, remedy: str = MAKE_ROOM) -> Iterator[None]:
    """Turns an OSError of the block into `cannot_write`. path: named where the error names no file itself."""
    try:
        yield
    except OSError as error:
        name = error.filename if isinstance(error.filename, str) else path
        raise cannot_write(name, error, remedy) from error


def write_text(path: Path, text: str) -> None:
    """Write a small text file. An OSError names the file."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        error.filename = str(path)
        raise
