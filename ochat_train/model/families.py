"""Families of base models: which one a base belongs to, and the prompt format and learning rate that go with it.

The one table behind `ochat init` and `optimizer.learning_rate: auto`. To add a family, add a row (the first that fits
counts) and repeat it in the table of docs/own-base.md; a test compares the two.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_ANY_SIZE = range(2**63 - 1)
_MOST_ADDED_TOKENS = 1024  # control tokens and padding; other vocabularies built on Llama's are larger by 10,000s


@dataclass(frozen=True, kw_only=True)
class Family:
    """Bases that share an architecture, a tokenizer and a learning rate.

    name: short, unique. title: for a sentence ("the learning rate of ...").
    model_type: as in the base's `config.json`.
    vocab_sizes: its `vocab_size`, tokens that were added to the base included.
    template: the prompt format of OpenChat's models of this family, None where OpenChat has none that is known here.
    learning_rate_divisor: divides the learning rate of Llama-2; larger vocabularies and bases trained for longer need
    smaller steps (OpenChat's `ochat/training_deepspeed/train.py`).
    learning_rate_of: title of the family whose learning rate this one takes, None if OpenChat has one for it.
    name_pattern: regular expression that finds the family in a model's name, for bases whose config is not at hand;
    None where no name tells.
    """

    name: str
    title: str
    model_type: str
    vocab_sizes: range = _ANY_SIZE
    template: str | None
    learning_rate_divisor: float
    learning_rate_of: str | None = None
    name_pattern: str | None = None


def _with_added_tokens(vocab_size: int) -> range:
    return range(vocab_size, vocab_size + _MOST_ADDED_TOKENS)


_OTHER_LLAMA = "other bases of the Llama architecture"

# Names are also searched in this order: a Mistral fine-tuned on a Llama's answers is a Mistral.
FAMILIES: tuple[Family, ...] = (
    Family(
        name="mistral",
        title="Mistral",
        model_type="mistral",
        template="openchat_3.5",
        learning_rate_divisor=6.0,
        name_pattern=r"mistral|zephyr",
    ),
    Family(
        name="gemma",
        title="Gemma",
        model_type="gemma",
        template=None,
        learning_rate_divisor=5.5,
        name_pattern=r"^(code)?gemma-(1\.1|2b|7b)",  # Gemma 2 and 3 have other architectures
    ),
    Family(
        name="llama-3",
        title="Llama-3",
        model_type="llama",
        vocab_sizes=_with_added_tokens(128_256),
        template="openchat_3.6",
        learning_rate_divisor=5.3,
        name_pattern=r"llama-?3",
    ),
    Family(
        name="llama-2",
        title="Llama-2",
        model_type="llama",
        vocab_sizes=_with_added_tokens(32_000),
        template="openchat_3.2",
        learning_rate_divisor=1.0,
        name_pattern=r"llama-?2",
    ),
    Family(
        name="llama-large-vocabulary",
        title=_OTHER_LLAMA,
        model_type="llama",
        vocab_sizes=range(100_000, _ANY_SIZE.stop),
        template=None,
        learning_rate_divisor=5.3,
        learning_rate_of="Llama-3",
    ),
    Family(
        name="llama-small-vocabulary",
        title=_OTHER_LLAMA,
        model_type="llama",
        vocab_sizes=range(100_000),
        template=None,
        learning_rate_divisor=1.0,
        learning_rate_of="Llama-2",
    ),
)


def family_of(model_type: str, vocab_size: int | None) -> Family | None:
    """The family of a base by its `config.json`, None where it belongs to none.

    vocab_size: None if the config does not say; only families that accept every size are found then, or the last of
    an architecture.
    """
    return next(
        (family for family in FAMILIES if family.model_type == model_type and (vocab_size or 0) in family.vocab_sizes),
        None,
    )


def family_by_name(name: str) -> Family | None:
    """The family that a base's name (Hub id or folder) mentions, None where it mentions none."""
    plain = name.rpartition("/")[2].lower()
    named = (family for family in FAMILIES if family.name_pattern is not None)
    return next((family for family in named if re.search(family.name_pattern or "", plain)), None)


def architectures() -> list[str]:
    """The architectures of all families, for a message: `Mistral`, `Gemma`, `Llama`."""
    return list(dict.fromkeys(family.model_type.capitalize() for family in FAMILIES))
