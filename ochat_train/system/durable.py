"""Writes that survive a crash: hashed on the way, flushed to the disk, visible only when complete.

Every change that a checkpoint makes to the disk goes through this file, so that tests can stop the process before and
in the middle of each.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from data_pipeline.files import sync


class FileRecord(NamedTuple):
    """Size in bytes and sha256 (hexadecimal) of a file as it was written."""

    num_bytes: int
    sha256: str


class _HashingStream:
    """A file that hashes what is written to it, in a second thread (writing and hashing release the GIL)."""

    def __init__(self, file: BinaryIO, pool: ThreadPoolExecutor) -> None:
        self._file, self._pool, self._digest = file, pool, hashlib.sha256()
        self._num_bytes = 0

    def write(self, data: Any) -> int:
        hashing = self._pool.submit(self._digest.update, data)
        write_all(self._file, data)
        hashing.result()
        size = memoryview(data).nbytes
        self._num_bytes += size
        return size

    def flush(self) -> None:
        self._file.flush()

    @property
    def record(self) -> FileRecord:
        return FileRecord(self._num_bytes, self._digest.hexdigest())


def write_all(file: BinaryIO, data: Any) -> None:
    """Write all of `data`."""
    view = memoryview(data).cast("B")
    while len(view):
        view = view[file.write(view) :]


def write_file(path: Path, write: Callable[[Any], object]) -> FileRecord:
    """Write a file with `write(stream)` and wait until it is on the disk. Raises OSError, a full disk for example."""
    with path.open("wb", buffering=0) as file, ThreadPoolExecutor(1) as pool:
        stream = _HashingStream(file, pool)
        write(stream)
        sync_file(file)
    return stream.record


def sync_file(file: Any) -> None:
    """Wait until the bytes of an open file are on the disk."""
    os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Wait until the entries of a folder are on the disk."""
    sync(folder)


def make_folder(folder: Path) -> None:
    """Create a folder that does not exist yet, and its parents."""
    folder.mkdir(parents=True)


def rename(source: Path, target: Path) -> None:
    """Give a file or folder another name in one step, replacing a file; the new name is on the disk afterwards."""
    os.replace(source, target)
    sync_folder(target.parent)


def remove_folder(folder: Path) -> None:
    """Delete a folder. It is renamed first, so that a half-deleted one is never taken for a complete one."""
    renamed = folder.with_name(f".deleted-{folder.name.lstrip('.')}")
    if folder != renamed:
        shutil.rmtree(renamed, ignore_errors=True)
        os.replace(folder, renamed)
    shutil.rmtree(renamed)


def replace_text(path: Path, text: str) -> None:
    """Replace the content of a file: a reader sees the old text or the new one. An OSError names the file."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        write_file(temporary, lambda stream: stream.write(text.encode("utf-8")))
        rename(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        error.filename = str(path)
        raise
