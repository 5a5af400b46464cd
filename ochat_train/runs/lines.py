"""The JSON lines of a run folder: the names of their files, and how they are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from data_pipeline import nesting
from data_pipeline.json_files import typed
from data_pipeline.text_rules import some_names
from ochat_train.system.messages import print_message

T = TypeVar("T")

METRICS_FILE = "metrics.jsonl"
VALIDATION_FILE = "validation.jsonl"
SAMPLES_FILE = "samples.jsonl"
BENCHMARKS_FILE = "benchmarks.jsonl"
EXPERTS_FILE = "experts.jsonl"
ANOMALIES_FILE = "anomalies.jsonl"
STARTS_FILE = "starts.jsonl"
_MOST_NUMBERS = 10  # of unreadable lines, in a notice


def results_of(path: Path, from_json: Callable[[Mapping[str, Any]], T]) -> list[T]:
    """The lines of one of these files as values, none where there is no file.

    from_json: makes a value of a line. Lines that it cannot read (of another version) are left out with a notice, as
    damaged lines are by `read_lines`.
    """
    results, unreadable = [], []
    for values in read_lines(path):
        try:
            result = from_json(values)
            typed(type(result), asdict(result))  # type: ignore[call-overload]
            results.append(result)
        except (KeyError, TypeError, AttributeError, ValueError):
            unreadable.append(values["step"])
    if unreadable:
        steps = some_names(unreadable, most=_MOST_NUMBERS)
        print_message(
            f"{path}: left out {len(unreadable):,} line(s) that lack values this version reads, of steps {steps}"
        )
    return results


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects on the lines of one of these files, none if there is no file.

    A last line without a line end was being written when the process was killed; it is left out. Other lines that
    cannot be read (a power cut may leave NULs) are left out with a notice: a damaged log must not stop a run.
    """
    found, unreadable = [], []
    # not splitlines(), which also splits at characters that an answer may contain (U+2028)
    lines = path.read_bytes().split(b"\n")[:-1] if path.is_file() else []
    for number, line in enumerate(lines, start=1):
        values = _values(line)
        if values is None:
            unreadable.append(number)
        else:
            found.append(values)
    if unreadable:
        numbers = some_names(unreadable, most=_MOST_NUMBERS)
        print_message(f"{path}: left out {len(unreadable):,} line(s) that are damaged and cannot be read: {numbers}")
    return found


def _values(line: bytes) -> dict[str, Any] | None:
    try:
        values = nesting.loads(line, constants=False)
    except ValueError:
        return None
    return values if isinstance(values, dict) and isinstance(values.get("step"), int) else None
