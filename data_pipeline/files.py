"""Files on disk: hashes, and writes that survive a power cut."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data_pipeline.errors import UserError
from data_pipeline.text_rules import shown


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


def read_json(path: Path, *, remedy: str = "") -> Any:
    """The value of a small JSON file. Raises UserError, with `remedy`, for one that cannot be read or is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(path, f"cannot be read: {error.strerror}", remedy) from None
    except (ValueError, RecursionError) as error:  # bytes that are not UTF-8, text that is not JSON, deep nesting
        raise UserError(path, f"is damaged, not JSON: {error}", remedy) from None


def read_json_object(path: Path, *, remedy: str = "") -> dict[str, Any]:
    """The same for a file that holds one JSON object."""
    value = read_json(path, remedy=remedy)
    if not isinstance(value, dict):
        raise UserError(path, f"is damaged: expected a JSON object, found {shown(value)}", remedy)
    return value


def read_text(path: Path, *, remedy: str = "") -> str:
    """The text of a small file. Raises UserError, with `remedy`, for one that cannot be read or is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(path, f"cannot be read: {error.strerror}", remedy) from None
    except UnicodeDecodeError as error:
        raise UserError(path, f"is damaged, not UTF-8: {error}", remedy) from None


def write_text(path: Path, text: str) -> None:
    """Write a small text file."""
    path.write_text(text, encoding="utf-8")
