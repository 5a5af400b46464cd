"""What an exported folder holds: names that pushing, loading and reports rely on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_pipeline import nesting

EXPORT_MARK = "ochat.json"  # `ochat export` writes it into every export
CARD = "README.md"
DEFAULT_SHARD_SIZE = "5GB"  # a larger model is written as several files of at most this size


def exported_names(mark: bytes) -> dict[str, str] | None:
    """Name -> sha256 of the files of an export, from its ochat.json; None where that does not list them."""
    try:
        return {str(name): str(sha256) for name, sha256 in nesting.loads(mark)["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def weights_sha256(files: Mapping[str, str]) -> str:
    """sha256 over the names and sha256 of the files with weights, from `exported_names`: which model a result is of."""
    weights = sorted([name, sha256] for name, sha256 in files.items() if name.endswith((".safetensors", ".bin")))
    return hashlib.sha256(json.dumps(weights).encode()).hexdigest()


def read_mark(folder: Path) -> dict[str, Any]:
    """What `ochat` wrote of an export; nothing for a folder of another program."""
    try:
        mark = nesting.loads((folder / EXPORT_MARK).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return mark if isinstance(mark, dict) else {}


def trained_conditions(mark: Mapping[str, Any]) -> tuple[str, ...]:
    """The conditions of an export's classes, each once; none where it does not say."""
    try:
        return tuple(dict.fromkeys(str(row["condition"]) for row in mark["classes"]))
    except (KeyError, TypeError):
        return ()


def answerable_conditions(mark: Mapping[str, Any]) -> tuple[str, ...]:
    """The trained conditions, and "" where the condition was left out of some rows in training."""
    try:
        has_dropout = bool(mark["recipe"]["data"]["condition_dropout"])
    except (KeyError, TypeError):
        has_dropout = False
    return tuple(dict.fromkeys((*trained_conditions(mark), *([""] if has_dropout else []))))
