"""sha256 of many files: in threads, and remembered until something says that a file has changed.

What was hashed is remembered in the user's cache folder, one small file for each host and group of files. A hash is
taken from there only while the file has the same size, times of change and inode. The time of the inode (ctime) cannot
be set back by copying or by `touch`, so content that was replaced is always read again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import queue
import socket
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_pipeline import nesting

_THREADS = 8  # more than one disk needs; hashing releases Python's lock
_BLOCK_BYTES = 1 << 22
_SETTLED_SECONDS = 2.0  # a file this young may change again within the resolution of its times
_REMEMBERED_SECONDS = 7 * 86_400.0  # then read again: a disk may lose bits without changing any time
CACHE_VARIABLE = "OCHAT_CACHE_DIR"


@dataclass(frozen=True, kw_only=True)
class FileHash:
    """size: in bytes. sha256: of the content, as hexadecimal text. The names are those of the JSON."""

    size: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class HashedFiles:
    """files: in the order that was asked for. read_bytes: of files that were read; the others were remembered."""

    files: Mapping[Path, FileHash]
    read_bytes: int
    seconds: float

    @property
    def num_bytes(self) -> int:
        """Size of all files."""
        return sum(file.size for file in self.files.values())


@dataclass(frozen=True)
class _Remembered:
    """identity: size, mtime_ns, ctime_ns and inode. hashed_at: seconds since 1970."""

    identity: tuple[int, int, int, int]
    sha256: str
    hashed_at: float


def hash_files(
    files: Sequence[Path],
    *,
    group: Path | None,
    read_all: bool = False,
    progress: Callable[[int], None] = lambda num_bytes: None,
) -> HashedFiles:
    """The hashes of files, several at once.

    group: the folder that the hashes are remembered for; None to remember nothing. read_all: read every file, also one
    whose hash is remembered. progress: called from the threads with the bytes read since the last call.
    Raises OSError for a file that cannot be read.
    """
    started = time.monotonic()
    memory = {} if group is None or read_all else _recall(group)
    found: dict[Path, _Remembered] = {}
    unread: list[Path] = []
    for file in files:
        before = memory.get(str(file.absolute()))
        if before is not None and before.identity == _identity(file.stat()):
            found[file] = before
        else:
            unread.append(file)
    found |= dict(zip(unread, _in_threads(lambda file: _hashed(file, progress), unread), strict=True))
    if group is not None and unread:
        _remember(group, {str(file.absolute()): found[file] for file in files})
    return HashedFiles(
        files={file: FileHash(size=found[file].identity[0], sha256=found[file].sha256) for file in files},
        read_bytes=sum(found[file].identity[0] for file in unread),
        seconds=time.monotonic() - started,
    )


def _identity(status: os.stat_result) -> tuple[int, int, int, int]:
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def _hashed(file: Path, progress: Callable[[int], None]) -> _Remembered:
    """The hash of a file's content now. One that changes meanwhile gets an identity that no file has later."""
    digest, size = hashlib.sha256(), 0
    with file.open("rb", buffering=0) as stream:
        before = _identity(os.fstat(stream.fileno()))
        while block := stream.read(_BLOCK_BYTES):
            digest.update(block)
            size += len(block)
            progress(len(block))
        is_same = _identity(os.fstat(stream.fileno())) == before
    now = time.time()
    is_settled = is_same and now - max(before[1], before[2]) / 1e9 > _SETTLED_SECONDS
    return _Remembered((size, *before[1:]) if is_settled else (size, -1, -1, -1), digest.hexdigest(), now)


def _in_threads(work: Callable[[Path], _Remembered], files: Sequence[Path]) -> list[_Remembered]:
    """The results in order. Raises the first error. The threads never keep a process that ends from ending."""
    left: queue.SimpleQueue[int] = queue.SimpleQueue()
    # the largest first: a small one at the end keeps no thread waiting
    for index in sorted(range(len(files)), key=lambda index: -files[index].stat().st_size):
        left.put(index)
    results: dict[int, _Remembered] = {}
    errors: list[BaseException] = []

    def run() -> None:
        with contextlib.suppress(queue.Empty):
            while not errors:
                index = left.get_nowait()
                try:
                    results[index] = work(files[index])
                except BaseException as error:
                    errors.append(error)

    threads = [threading.Thread(target=run, name="hashing", daemon=True) for _ in range(min(_THREADS, len(files)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return [results[index] for index in range(len(files))]


# ---- the memory ----


def cache_folder(environment: Mapping[str, str] = os.environ) -> Path | None:
    """Where this program keeps what it can make again: `$OCHAT_CACHE_DIR`, `ochat-train` in `$XDG_CACHE_HOME`, or below
    `~/.cache`. None for a user without a home.
    """
    if own := environment.get(CACHE_VARIABLE):
        return Path(own)
    shared = environment.get("XDG_CACHE_HOME")
    if shared and Path(shared).is_absolute():
        return Path(shared) / "ochat-train"
    try:
        return Path.home() / ".cache" / "ochat-train"
    except RuntimeError:
        return None


def _memory_file(group: Path) -> Path | None:
    """One for each host, whose folders of the same name may hold other files; the cache folder may be shared."""
    folder = cache_folder()
    name = hashlib.sha256(f"{socket.gethostname()}\0{group.resolve()}".encode()).hexdigest()[:32]
    return None if folder is None else folder / "hashes" / f"{name}.json"


def _recall(group: Path) -> dict[str, _Remembered]:
    """What is remembered of a group, by absolute path. Nothing where the file is missing, damaged or of another
    version: then everything is read.
    """
    path = _memory_file(group)
    try:
        content = nesting.loads(path.read_text(encoding="utf-8")) if path is not None else {}
        if content["sha256"] != _sha256_of(content["files"]):
            return {}
        entries = {
            name: _Remembered(tuple(identity), sha256, hashed_at)
            for name, (identity, sha256, hashed_at) in content["files"].items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
    now = time.time()
    return {name: entry for name, entry in entries.items() if 0 <= now - entry.hashed_at < _REMEMBERED_SECONDS}


def _remember(group: Path, entries: Mapping[str, _Remembered]) -> None:
    """Write the memory of a group. A disk that takes no file costs time at the next start, nothing else."""
    path = _memory_file(group)
    if path is None:
        return
    files = {name: [list(entry.identity), entry.sha256, entry.hashed_at] for name, entry in entries.items()}
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_text(json.dumps({"sha256": _sha256_of(files), "files": files}), encoding="utf-8")
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def _sha256_of(files: object) -> str:
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
