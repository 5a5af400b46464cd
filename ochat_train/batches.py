"""Plan and prepared dataset to packed micro-batches.

Shape letters: T tokens of a pack (constant), S sequences of a pack (constant, padded).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from data_pipeline.dataset import PreparedSplit
from data_pipeline.plan import EpochPlan


@dataclass(frozen=True, kw_only=True)
class PackedBatch:
    """One pack: whole conversations one after the other, then padding. All shapes are constant over a run.

    input_ids_T: int64. position_ids_T: int64, from 0 in every conversation.
    target_ids_T: int64, the next token of the same conversation. target_weights_T: float32, 0 where there is no target.
    class_ids_T: int64, class of the conversation.
    cu_seqlens_S1: int32[S + 1], where sequences begin and end; the padding is a sequence of its own, and unused entries
    repeat T (empty sequences).
    num_tokens: tokens that are not padding.
    """

    input_ids_T: torch.Tensor
    position_ids_T: torch.Tensor
    target_ids_T: torch.Tensor
    target_weights_T: torch.Tensor
    class_ids_T: torch.Tensor
    cu_seqlens_S1: torch.Tensor
    num_tokens: int

    def to(self, device: torch.device) -> PackedBatch:
        """The same batch on another device."""
        tensors = {k: v.to(device, non_blocking=True) for k, v in vars(self).items() if isinstance(v, torch.Tensor)}
        return PackedBatch(**tensors, num_tokens=self.num_tokens)


def pack_batch(split: PreparedSplit, rows: np.ndarray, *, pack_length: int, max_sequences: int) -> PackedBatch:
    """Lay the conversations `rows` into one pack. Targets are shifted here, and nowhere else.

    max_sequences: conversations of the fullest pack; the padding takes one sequence more.
    """
    input_ids = np.zeros(pack_length, dtype=np.int64)
    position_ids = np.zeros(pack_length, dtype=np.int64)
    target_ids = np.zeros(pack_length, dtype=np.int64)
    target_weights = np.zeros(pack_length, dtype=np.float32)
    class_ids = np.zeros(pack_length, dtype=np.int64)
    cu_seqlens = np.full(max_sequences + 2, pack_length, dtype=np.int32)
    cu_seqlens[0] = 0
    end = 0
    for number, row in enumerate(rows):
        tokens = split[int(row)]
        start, end = end, end + len(tokens.input_ids)
        input_ids[start:end] = tokens.input_ids
        position_ids[start:end] = np.arange(end - start)
        target_ids[start : end - 1] = tokens.input_ids[1:]
        target_weights[start : end - 1] = tokens.loss_weights[1:]
        class_ids[start:end] = split.class_id[row]
        cu_seqlens[number + 1] = end
    position_ids[end:] = np.arange(pack_length - end)
    return PackedBatch(
        input_ids_T=torch.from_numpy(input_ids),
        position_ids_T=torch.from_numpy(position_ids),
        target_ids_T=torch.from_numpy(target_ids),
        target_weights_T=torch.from_numpy(target_weights),
        class_ids_T=torch.from_numpy(class_ids),
        cu_seqlens_S1=torch.from_numpy(cu_seqlens),
        num_tokens=end,
    )


def micro_batches(
    split: PreparedSplit, plan: EpochPlan, packs: np.ndarray, *, max_sequences: int, device: torch.device
) -> Iterator[PackedBatch]:
    """The packed batches of `packs` (int64, EMPTY_PACK for a pack of nothing but padding), one at a time."""
    for pack_number in packs:
        rows = plan.rows(int(pack_number))
        yield pack_batch(split, rows, pack_length=plan.capacity, max_sequences=max_sequences).to(device)
