"""The JSON lines of a run folder: their files' names, written and read. A line is in its file whole, or not at all."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from data_pipeline import nesting
from data_pipeline.json_files import typed
from ochat_train.system.messages import print_message

T = TypeVar("T")

METRICS_FILE = "metrics.jsonl"
VALIDATION_FILE = "validation.jsonl"
SAMPLES_FILE = "samples.jsonl"
EXPERTS_FILE = "experts.jsonl"
ANOMALIES_FILE = "anomalies.jsonl"
_TAIL_BYTES = 1 << 16  # read at once to find the end of the last whole line
_MOST_NUMBERS = 10  # of unreadable lines, in a notice


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


def results_of(path: Path, from_json: Callable[[Mapping[str, Any]], T]) -> list[T]:
    """The rows of one of these files as values, none where there is no file.

    from_json: makes a value of a row. Rows that it cannot read (of another version) are left out with a notice, as
    damaged lines are by `rows_of`.
    """
    results, unreadable = [], []
    for row in rows_of(path):
        try:
            result = from_json(row)
            typed(type(result), asdict(result))  # type: ignore[call-overload]
            results.append(result)
        except (KeyError, TypeError, AttributeError, ValueError):
            unreadable.append(row["step"])
    if unreadable:
        steps = _first_numbers(unreadable)
        print_message(
            f"{path}: left out {len(unreadable):,} line(s) that lack values this version reads, of steps {steps}"
        )
    return results


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The rows of one of these files, none if there is no file.

    A last line without a line end was being written when the process was killed; it is left out. Other lines that
    cannot be read (a power cut may leave NULs) are left out with a notice: a damaged log must not stop a run.
    """
    rows, unreadable = [], []
    # not splitlines(), which also splits at characters that an answer may contain (U+2028)
    lines = path.read_bytes().split(b"\n")[:-1] if path.is_file() else []
    for number, line in enumerate(lines, start=1):
        row = _row(line)
        if row is None:
            unreadable.append(number)
        else:
            rows.append(row)
    if unreadable:
        numbers = _first_numbers(unreadable)
        print_message(f"{path}: left out {len(unreadable):,} line(s) that are damaged and cannot be read: {numbers}")
    return rows


def _first_numbers(numbers: Sequence[int]) -> str:
    more = ", ..." if len(numbers) > _MOST_NUMBERS else ""
    return ", ".join(map(str, numbers[:_MOST_NUMBERS])) + more


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = nesting.loads(line, parse_constant=_refuse_constant)
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
