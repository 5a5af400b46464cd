"""A micro-batch as the model takes it: packs end to end, targets shifted once, borders of conversations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch

from data_pipeline.prepared.dataset import PreparedSplit

_SEQLEN_MULTIPLE = 128


@dataclass(frozen=True, kw_only=True)
class PackShape:
    """Sizes that all packs of a run share, so that compiled code sees static shapes."""

    pack_length: int
    """Tokens of a pack, padding included."""

    max_seqlen: int
    """Tokens; no sequence is longer. FlashAttention-2 starts a block for every 64 to 128 tokens of it in every
    sequence, so where conversations are short, a bound of the whole pack would cost more than the attention itself."""

    max_sequences: int
    """Sequences of a pack at most, those of padding included."""

    @classmethod
    def holding(cls, *, pack_length: int, longest: int, max_conversations: int) -> PackShape:
        """For packs of at most `max_conversations` conversations of at most `longest` tokens, then padding."""
        max_seqlen = min(pack_length, -(-longest // _SEQLEN_MULTIPLE) * _SEQLEN_MULTIPLE)
        padding = -(-pack_length // max_seqlen)  # a pack may be empty
        return cls(pack_length=pack_length, max_seqlen=max_seqlen, max_sequences=max_conversations + padding)


@dataclass(frozen=True, kw_only=True)
class PackedBatch:
    """A micro-batch: one pack, or several end to end, T tokens in all.

    A pack holds whole conversations end to end, then padding. An example with T = 10 and two conversations,
    a b c d (the assistant says c d) and e f g (the assistant says g), of classes 0 and 1:

        input_ids_T         a  b  c  d  e  f  g  0  0  0
        position_ids_T      0  1  2  3  0  1  2  0  1  2
        target_ids_T        b  c  d  0  f  g  0  0  0  0
        target_weights_T    0  w  w  0  0  w' 0  0  0  0
        class_ids_T         0  0  0  0  1  1  1  0  0  0
        supervised_indices_N   1  2        5
        cu_seqlens_S1       0           4        7       10 10 ...

    Targets are shifted in `pack_batch`, and nowhere else: neither model nor loss shifts them.
    All shapes but that of `supervised_indices_N` are constant over a run.
    """

    input_ids_T: torch.Tensor
    """int64. Token ids; 0 in padding."""

    position_ids_T: torch.Tensor
    """int64. Positions in tokens, from 0 in every sequence."""

    target_ids_T: torch.Tensor
    """int64. The id of the next token of the same conversation; 0 where there is none."""

    target_weights_T: torch.Tensor
    """float32. The loss weight of the target (class weight times row weight); 0 where nothing is learned: in prompts,
    at the last token of a conversation and in padding."""

    class_ids_T: torch.Tensor
    """int64. The class of the conversation, an index into the manifest's classes; 0 in padding."""

    supervised_indices_N: torch.Tensor
    """int64. Indices into T of the tokens whose target has a weight, ascending. Found on the CPU, because a GPU would
    have to be waited for."""

    cu_seqlens_S1: torch.Tensor
    """int32[S + 1]. Where sequences begin and end, in tokens from 0 to T. Every conversation is a sequence; padding is
    cut into separate sequences; unused entries repeat T (empty sequences)."""

    max_seqlen: int
    """Tokens. No sequence is longer; constant over a run."""

    num_tokens: int
    """Tokens that are not padding."""

    pack_tokens: tuple[int, ...] = ()
    """The same of each pack, if there are several: T is cut into as many packs of one length, with padding at the end
    of each. Empty for one pack."""

    @property
    def tokens_of_packs(self) -> tuple[int, ...]:
        """Tokens that are not padding, of each pack."""
        return self.pack_tokens or (self.num_tokens,)

    def to(self, device: torch.device) -> PackedBatch:
        """The same batch on another device. From pinned memory the copy runs in the background."""
        tensors: dict[str, Any] = {
            name: value.to(device, non_blocking=True)
            for name, value in vars(self).items()
            if isinstance(value, torch.Tensor)
        }
        return replace(self, **tensors)

    def pinned(self) -> PackedBatch:
        """The same batch in page-locked memory, which a GPU copies from in the background."""
        tensors: dict[str, Any] = {
            name: value.pin_memory() for name, value in vars(self).items() if isinstance(value, torch.Tensor)
        }
        return replace(self, **tensors)


def pack_batch(split: PreparedSplit, rows: np.ndarray, shape: PackShape) -> PackedBatch:
    """Lay the conversations `rows` of a split into one pack. Targets are shifted here, and nowhere else.

    rows: int64, indices into the split; they must fit into `shape`. Empty for a pack of padding alone.
    """
    pack_length = shape.pack_length
    input_ids = np.zeros(pack_length, dtype=np.int64)
    position_ids = np.zeros(pack_length, dtype=np.int64)
    target_ids = np.zeros(pack_length, dtype=np.int64)
    target_weights = np.zeros(pack_length, dtype=np.float32)
    class_ids = np.zeros(pack_length, dtype=np.int64)
    cu_seqlens = np.full(shape.max_sequences + 1, pack_length, dtype=np.int32)
    cu_seqlens[0] = 0
    end = 0
    for number, row in enumerate(rows, 1):
        tokens = split[int(row)]
        start, end = end, end + len(tokens.input_ids)
        input_ids[start:end] = tokens.input_ids
        position_ids[start:end] = np.arange(end - start)
        target_ids[start : end - 1] = tokens.input_ids[1:]
        target_weights[start : end - 1] = tokens.loss_weights[1:]
        class_ids[start:end] = split.class_id[row]
        cu_seqlens[number] = end
    padding = np.arange(end, pack_length, shape.max_seqlen)
    cu_seqlens[len(rows) : len(rows) + len(padding)] = padding
    position_ids[end:] = np.arange(pack_length - end) % shape.max_seqlen
    return PackedBatch(
        input_ids_T=torch.from_numpy(input_ids),
        position_ids_T=torch.from_numpy(position_ids),
        target_ids_T=torch.from_numpy(target_ids),
        target_weights_T=torch.from_numpy(target_weights),
        class_ids_T=torch.from_numpy(class_ids),
        supervised_indices_N=torch.from_numpy(np.flatnonzero(target_weights)),
        cu_seqlens_S1=torch.from_numpy(cu_seqlens),
        max_seqlen=shape.max_seqlen,
        num_tokens=end,
    )


def joined(packs: Sequence[PackedBatch]) -> PackedBatch:
    """Several packs end to end as one micro-batch, with the borders of all their sequences."""
    if len(packs) == 1:
        return packs[0]
    length = len(packs[0].input_ids_T)
    starts = range(0, length * len(packs), length)
    same = [field.name for field in fields(PackedBatch) if field.name.endswith("_T")]
    borders = [pack.cu_seqlens_S1[:-1] + start for pack, start in zip(packs, starts, strict=True)]
    return PackedBatch(
        **{name: torch.cat([getattr(pack, name) for pack in packs]) for name in same},
        supervised_indices_N=torch.cat(
            [pack.supervised_indices_N + start for pack, start in zip(packs, starts, strict=True)]
        ),
        cu_seqlens_S1=torch.cat((*borders, packs[-1].cu_seqlens_S1[-1:] + starts[-1])),
        max_seqlen=packs[0].max_seqlen,
        num_tokens=sum(pack.num_tokens for pack in packs),
        pack_tokens=tuple(pack.num_tokens for pack in packs),
    )
