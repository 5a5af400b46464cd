"""Files on disk: hashes, and writes that survive a power cut."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data_pipeline.errors import UserError


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
    final.parent.mkdir(parents=True, exist_ok=True)
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


def write_text(path: Path, text: str) -> None:
    """Write a small text file."""
    path.write_text(text, encoding="utf-8")
