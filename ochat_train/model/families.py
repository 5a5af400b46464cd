"""Families of base models: names, prompt templates, learning rates."""

from __future__ import annotations

import re
from collections.abc import Mapping

# What OpenChat divides Llama-2's base rate by (ochat/training_deepspeed/train.py): larger vocabularies and better
# trained bases want smaller steps.
LEARNING_RATE_DIVISORS: Mapping[str, float] = {"llama-2": 1.0, "mistral": 6.0, "gemma": 5.5, "llama-3": 5.3}


_LLAMA_2_VOCABULARY, _LLAMA_3_VOCABULARY = 32_000, 128_256


# Only for bases that are not here; the order matters: `llama-3` before `llama-2`, and a fine-tuned Mistral is a
# Mistral.
_FAMILY_NAMES = (("mistral", r"mistral|zephyr"), ("llama-3", r"llama-?3"), ("llama-2", r"llama-?2"))


FAMILY_TEMPLATES = {"mistral": "openchat_3.5", "llama-3": "openchat_3.6", "llama-2": "openchat_3.2"}


def family_of(model_type: str, vocab_size: int | None) -> str:
    """The family of a base that is here, `other` where it is none of them."""
    if model_type == "llama":
        return {_LLAMA_2_VOCABULARY: "llama-2", _LLAMA_3_VOCABULARY: "llama-3"}.get(vocab_size or 0, "other")
    return model_type if model_type == "mistral" else "other"


def family_by_name(name: str) -> str:
    """The family that a base's name speaks of, `other` where it speaks of none."""
    plain = name.rpartition("/")[2].lower()
    return next((family for family, pattern in _FAMILY_NAMES if re.search(pattern, plain)), "other")
