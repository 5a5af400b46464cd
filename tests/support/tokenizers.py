"""Tokenizers made on the spot."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ochat_train.quickstart.make import write_tokenizer


def write_small_tokenizer(folder: Path) -> Path:
    """Train the small tokenizer into `folder`."""
    texts = [
        "Hello there, how are you today?",
        "GPT4 Correct User: GPT4 Correct Assistant: GPT3",
        "The answer is 42.",
    ] * 20
    write_tokenizer(folder, texts, vocab_size=400)
    return folder


def changed_tokenizer(folder: Path, base: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A copy of a tokenizer folder with another `tokenizer.json`."""
    shutil.copytree(base, folder)
    description = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    change(description)
    (folder / "tokenizer.json").write_text(json.dumps(description), encoding="utf-8")
    return folder


def smaller_vocabulary(description: dict[str, Any]) -> None:
    """Keep bytes, characters and the first 2,000 pieces: as a large one, but loaded in milliseconds."""
    model = description["model"]
    kept = [piece for piece, number in model["vocab"].items() if number < 2_000 or len(piece) == 1]
    vocabulary = {piece: number for number, piece in enumerate(sorted(kept, key=model["vocab"].__getitem__))}
    model["merges"] = [pair for pair in model["merges"] if {*pair, "".join(pair)} <= vocabulary.keys()]
    model["vocab"] = vocabulary
