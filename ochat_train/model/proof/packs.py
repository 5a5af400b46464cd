"""The conversations that a proof packs: uneven, some tokens without weight, two packs as one micro-batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from data_pipeline.conversation import TokenizedConversation
from ochat_train.model.batch import PackedBatch, PackShape, joined, pack_batch
from ochat_train.model.proof.small_config import LENGTHS

_PACK_LENGTH = 64  # tokens; both packs have padding, and kernels for short texts (below 128) are not chosen
_PACKS = ((0, 1), (2,))  # the conversations of each
CHANGED = 1
"""The conversation of which a token is changed, with one before it in its pack and one after it in the next."""

NUM_CLASSES = 2


@dataclass(frozen=True, kw_only=True)
class Conversations:
    """What `pack_batch` needs of a prepared split."""

    rows: tuple[TokenizedConversation, ...]
    class_id: np.ndarray

    def __getitem__(self, row: int) -> TokenizedConversation:
        return self.rows[row]

    def with_changed_token(self, vocab_size: int) -> Conversations:
        """The same with another token in the middle of conversation `CHANGED`."""
        rows = list(self.rows)
        ids = rows[CHANGED].input_ids.copy()
        ids[len(ids) // 2] = (ids[len(ids) // 2] + vocab_size // 2) % vocab_size
        rows[CHANGED] = TokenizedConversation(input_ids=ids, loss_weights=rows[CHANGED].loss_weights)
        return Conversations(rows=tuple(rows), class_id=self.class_id)


def random_conversations(vocab_size: int, *, seed: int) -> Conversations:
    """Conversations of `LENGTHS` tokens with ids below `vocab_size`; about a third of the tokens has no weight."""
    generator = np.random.default_rng(seed)
    rows = tuple(
        TokenizedConversation(
            input_ids=generator.integers(0, vocab_size, size=length, dtype=np.int32),
            loss_weights=(generator.uniform(0.2, 1.5, length) * (generator.random(length) > 1 / 3)).astype(np.float32),
        )
        for length in LENGTHS
    )
    return Conversations(rows=rows, class_id=np.arange(len(rows), dtype=np.int32) % NUM_CLASSES)


def packed(conversations: Any, device: torch.device) -> PackedBatch:
    """The packs of the conversations as one micro-batch."""
    most = max(len(rows) for rows in _PACKS)
    shape = PackShape.holding(pack_length=_PACK_LENGTH, longest=max(LENGTHS), max_conversations=most)
    return joined([pack_batch(conversations, np.array(rows), shape) for rows in _PACKS]).to(device)


def places() -> list[slice]:
    """Where each conversation is in the micro-batch of `packed`."""
    found = []
    for number, rows in enumerate(_PACKS):
        start = number * _PACK_LENGTH
        for row in rows:
            found.append(slice(start, start + LENGTHS[row]))
            start += LENGTHS[row]
    return found
