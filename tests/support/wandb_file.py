"""Reads the file of an offline run of Weights & Biases: a log of records in blocks of 32 KiB, after a head of 7
bytes.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2

_BLOCK = 32 * 1024
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


def _records(path: Path) -> Iterator[Any]:
    data = path.read_bytes()
    assert data[:4] == b":W&B"
    place, parts = 7, b""
    while place < len(data):
        if (left := _BLOCK - place % _BLOCK) < 7:
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        assert kind in (_FULL, _FIRST, _MIDDLE, _LAST)
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (_FULL, _LAST):
            yield wandb_internal_pb2.Record.FromString(parts)
            parts = b""
    assert not parts


def history(path: Path) -> list[dict[str, Any]]:
    """The rows of a run, in order."""
    rows = [record.history for record in _records(path) if record.HasField("history")]
    return [{item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in row.item} for row in rows]


def run_record(path: Path) -> Any:
    """Name, project, id, tags and configuration of a run."""
    return next(record.run for record in _records(path) if record.HasField("run"))


def config(path: Path) -> dict[str, Any]:
    """The configuration of a run."""
    return {entry.key: json.loads(entry.value_json) for entry in run_record(path).config.update}
