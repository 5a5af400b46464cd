"""Lengths, steps and epochs of a first recipe, from what was seen in the data. Pure functions.

None of these numbers is right for everybody; each comes with a reason, which the recipe and the screen show.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

CHARACTERS_PER_TOKEN = 3.5  # English text has about 4; a little less, so that estimates err on the long side
_SHORTEST_LENGTH, _LONGEST_LENGTH = 512, 8192  # of `max_length_tokens`; OpenChat's models were trained with 8192
_COVERED = 0.99  # share of conversations that should fit whole
_PACK_LENGTH = 8192
_LARGEST_STEP = 655_360  # tokens of OpenChat's step
_FEW_PACKS = 4  # on a GPU and step; more can be dealt so that all GPUs have the same work
_STEPS_PER_EPOCH = 50  # fewer would be few updates; large datasets reach _LARGEST_STEP first
_LARGE_DATA = 20_000  # conversations; OpenChat's 5 epochs were for 70,000
_HELD_OUT_PROMPTS = 300
_FEWEST_PROMPTS = 200  # with fewer, the held-out part is too small to measure or too much to lose

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Decision(Generic[T]):
    """A value and why it was chosen."""

    value: T
    reason: str


def estimated_tokens(characters: np.ndarray) -> np.ndarray:
    """Tokens of texts, int64, estimated from their characters if there is no tokenizer."""
    return np.ceil(characters / CHARACTERS_PER_TOKEN).astype(np.int64)


def choose_max_length(by_source: Sequence[np.ndarray], *, max_positions: int | None, exact: bool) -> Decision[int]:
    """`model.max_length_tokens`: a power of two that nearly all conversations of every source fit into.

    by_source: tokens of the sampled ones. max_positions: the most that the base supports, None if not known.
    """
    needed = max(float(np.quantile(lengths, _COVERED)) for lengths in by_source)
    value = _SHORTEST_LENGTH
    while value < needed:
        value *= 2
    value = min(value, _LONGEST_LENGTH, max_positions or _LONGEST_LENGTH)
    lengths = np.concatenate(by_source)
    num_longer = int(np.count_nonzero(lengths > value))
    fits = f"{num_longer:,} of {len(lengths):,} exceed this" if num_longer else "all fit"
    limit = "; the base supports no more" if value == max_positions else ""
    measured = "tokens" if exact else "tokens by an estimate"
    how = "tokenized" if exact else "sampled"
    longest = f"the longest of {len(lengths):,} {how} conversations has {int(lengths.max()):,} {measured}"
    return Decision(value=value, reason=f"{longest}, {fits}{limit}")


def choose_pack_length(*, max_length: int, total_tokens: int, gpus: int) -> Decision[int]:
    """`train.pack_length_tokens`: long packs waste less, but a step needs one on every GPU."""
    value = _PACK_LENGTH
    while value > max_length and value * gpus * _STEPS_PER_EPOCH > total_tokens:
        value //= 2
    value = max(value, max_length)
    reason = "long packs waste least" if value >= _PACK_LENGTH else "short, because a step has little data"
    return Decision(value=value, reason=reason)


def choose_tokens_per_step(*, pack_length: int, total_tokens: int, gpus: int) -> Decision[int]:
    """`train.tokens_per_step`: about 50 steps an epoch, at most OpenChat's step, whole packs on every GPU."""
    smallest = pack_length * gpus
    wanted = min(total_tokens // _STEPS_PER_EPOCH, _LARGEST_STEP)
    value = max(1, wanted // smallest) * smallest
    steps = -(-total_tokens // value)
    return Decision(value=value, reason=f"{value // pack_length} pack(s), about {steps:,} steps an epoch")


def choose_plan(*, num_packs: int, gpus: int) -> Decision[str]:
    """`train.plan`. With so few packs on each GPU, the longest conversations of a step cannot be shared out evenly."""
    if gpus > 1 and num_packs < _FEW_PACKS * gpus:
        return Decision(value="balanced", reason=f"packs of like cost in a step: {num_packs} for {gpus} GPUs are few")
    return Decision(value="varied", reason="random packs")


def choose_epochs(num_conversations: int) -> Decision[int]:
    """`train.epochs`."""
    if num_conversations >= _LARGE_DATA:
        return Decision(value=5, reason="as for OpenChat's 70,000 conversations")
    return Decision(value=3, reason=f"fewer than {_LARGE_DATA:,} conversations are soon memorized")


def choose_validation_ratio(num_prompts: int) -> Decision[float]:
    """`data.validation_ratio`, of different first prompts, which are held out together."""
    if num_prompts < _FEWEST_PROMPTS:
        return Decision(
            value=0.0, reason=f"only about {num_prompts:,} different first prompts: too few to hold some out"
        )
    value = round(min(0.1, max(0.01, _HELD_OUT_PROMPTS / num_prompts)), 3)
    return Decision(
        value=value, reason=f"about {round(value * num_prompts):,} of {num_prompts:,} different first prompts"
    )


def choose_save_every(*, total_tokens: int, tokens_per_step: int) -> Decision[int]:
    """`checkpoint.save_every_steps`: about once an epoch, at least every 200 steps."""
    steps = -(-total_tokens // tokens_per_step)
    return Decision(
        value=min(200, steps), reason="about once an epoch" if steps <= 200 else "the most that a crash can lose"
    )
