"""Rows of conversations, and how they are written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def conversations(count: int) -> list[dict[str, Any]]:
    """Rows of format `messages`, one to three turns, of different lengths, with a unique first prompt."""
    rows = []
    for number in range(count):
        messages = []
        for turn in range(1 + number % 3):
            messages.append({"role": "user", "content": f"Question {number}.{turn}: how are you?"})
            messages.append(
                {"role": "assistant", "content": "The answer is " + "42 " * (1 + (number * 7 + turn) % 9) + "."}
            )
        rows.append({"messages": messages})
    return rows


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    """Write rows, one JSON document a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
