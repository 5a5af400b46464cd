"""Answers that were given, kept a line each, so that nothing is asked twice."""

from __future__ import annotations

import fcntl
import hashlib
import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO, TypeVar

from data_pipeline import nesting
from data_pipeline.errors import UserError
from data_pipeline.files import cannot_use, explained_writes
from data_pipeline.json_files import typed
from ochat_train.suites.suite import Answer
from ochat_train.system.json_lines import append_row
from ochat_train.system.messages import print_message

ANSWERS_FILE = "answers.jsonl"
_LOCK_FILE = ".lock"
T = TypeVar("T")


def key_of(*parts: Any) -> str:
    """The key of an answer: a sha256 over everything that decides it, as JSON."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


class Lines:
    """Values by key in a file of JSON lines. The newest line of a key counts.

    A last line without an end was cut off by a kill, and is as if it had not been written. Other damaged lines are left
    out with a notice: what they held is asked again.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._values: dict[str, dict[str, Any]] = {}
        self._writing = threading.Lock()
        for line in self._whole_lines():
            self._values[line["key"]] = line["value"]

    def __len__(self) -> int:
        """How many keys have a value."""
        return len(self._values)

    def get(self, key: str, make: Callable[[Mapping[str, Any]], T]) -> T | None:
        """The value of a key, None where there is none that `make` can read (it raises ValueError or KeyError)."""
        if key not in self._values:
            return None
        try:
            return make(self._values[key])
        except (ValueError, KeyError, TypeError):
            return None

    def put(self, key: str, value: Mapping[str, Any], **about: Any) -> None:
        """Append a value. about: what a person who reads the file wants to see beside it.

        Raises UserError where the disk is full.
        """
        row = {"key": key, **about, "value": dict(value)}
        with self._writing, explained_writes(self.path):
            append_row(self.path, row)
        self._values[key] = row["value"]

    def _whole_lines(self) -> list[dict[str, Any]]:
        data = self.path.read_bytes() if self.path.is_file() else b""
        lines, damaged = [], 0
        for line in data.split(b"\n")[:-1]:
            row = _row(line)
            if row is None:
                damaged += 1
            else:
                lines.append(row)
        if damaged:
            print_message(f"{self.path}: left out {damaged:,} damaged line(s); what they held is asked again")
        return lines


class AnswerStore:
    """The answers of a folder."""

    def __init__(self, folder: Path) -> None:
        self._lines = Lines(folder / ANSWERS_FILE)

    @property
    def is_empty(self) -> bool:
        """Whether no answer was given yet."""
        return not len(self._lines)

    def get(self, key: str) -> Answer | None:
        """The answer with this key, None where it was not given yet."""
        return self._lines.get(key, lambda value: typed(Answer, value))

    def put(self, key: str, answer: Answer, **about: Any) -> None:
        """Keep an answer. Raises UserError where the disk is full."""
        self._lines.put(key, asdict(answer), **about)


class FolderLock:
    """Keeps a second `ochat eval` out of a folder of results, until `close`. Ends with this process."""

    def __init__(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file: TextIO = (folder / _LOCK_FILE).open("w")
        except OSError as error:
            raise cannot_use(folder, error) from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise UserError(folder, "another `ochat eval` writes there", "wait for it, or name another --out") from None

    def close(self) -> None:
        """Let others use the folder."""
        self._file.close()


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = nesting.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    whole = isinstance(row, dict) and isinstance(row.get("key"), str) and isinstance(row.get("value"), dict)
    return row if whole else None
