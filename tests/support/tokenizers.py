"""Tokenizers made on the spot."""

from __future__ import annotations

from pathlib import Path

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
