"""Lines of JSON that are appended one by one: a line is in its file whole, or not at all."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

_TAIL_BYTES = 1 << 16  # read at once to find the end of the last whole line


def json_line(row: dict[str, Any]) -> str:
    """A row as one line of JSON, its end included."""
    return json.dumps(row, allow_nan=False, ensure_ascii=False) + "\n"


def append_row(path: Path, row: dict[str, Any]) -> None:
    """Append a row to a file, which is made if it is not there; its folder is not.

    Where the write fails half-way (a full disk), the part that was written is taken out again. So is a last line
    without an end, left by a process that was killed: the row would become a part of it. Raises OSError.
    """
    data = json_line(row).encode("utf-8")
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        end = _end_of_lines(descriptor)
        try:
            written = 0
            while written < len(data):
                written += os.write(descriptor, data[written:])
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, end)
            raise
    finally:
        os.close(descriptor)


def _end_of_lines(descriptor: int) -> int:
    """The size of an open file, after what follows its last line end was cut off."""
    size = end = os.fstat(descriptor).st_size
    if size and os.pread(descriptor, 1, size - 1) == b"\n":
        return size
    while end and (block := os.pread(descriptor, min(end, _TAIL_BYTES), max(0, end - _TAIL_BYTES))):
        if newline := block.rfind(b"\n") + 1:
            end += newline - len(block)
            break
        end -= len(block)
    if end < size:
        os.ftruncate(descriptor, end)
    return end
