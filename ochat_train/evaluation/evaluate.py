"""How a model does on held-out conversations, on all ranks: every conversation scored once, packed as in training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from data_pipeline.plan.packing import Packs, pack
from data_pipeline.prepared.dataset import Manifest, PreparedSplit
from ochat_train.distributed.ranks import Ranks
from ochat_train.evaluation.condition_matrix import ConditionMatrix, condition_matrix
from ochat_train.model.batch import PackShape, pack_batch

NLL, WEIGHTED_NLL, CORRECT, WEIGHTED_CORRECT = range(4)


@dataclass(frozen=True, kw_only=True)
class HeldOutData:
    """The held-out splits of a prepared dataset, packed. shape: of the packs of both."""

    manifest: Manifest
    validation: PreparedSplit
    others: PreparedSplit
    validation_packs: Packs
    others_packs: Packs
    shape: PackShape

    @property
    def num_tokens(self) -> int:
        """Tokens that one validation reads, padding included."""
        return self.shape.pack_length * (len(self.validation_packs) + len(self.others_packs))


def held_out_data(prepared_dir: Any, manifest: Manifest, *, pack_length: int) -> HeldOutData:
    """The held-out splits of a prepared dataset. The packing is the same at every validation, and on any number of
    ranks.
    """
    validation, others = PreparedSplit(prepared_dir, "validation"), PreparedSplit(prepared_dir, "conditions")
    packs = [_packs(split, pack_length) for split in (validation, others)]
    shape = PackShape.holding(
        pack_length=pack_length,
        longest=max(int(split.num_tokens.max(initial=1)) for split in (validation, others)),
        max_conversations=max(int(np.diff(found.offsets).max(initial=0)) for found in packs),
    )
    return HeldOutData(
        manifest=manifest,
        validation=validation,
        others=others,
        validation_packs=packs[0],
        others_packs=packs[1],
        shape=shape,
    )


def _packs(split: PreparedSplit, pack_length: int) -> Packs:
    if not len(split):
        return Packs(rows=np.zeros(0, np.int64), offsets=np.zeros(1, np.int64))
    return pack(split.num_tokens, capacity=pack_length, rng=np.random.default_rng(0))


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What one pass over held-out conversations gives.

    loss: weighted mean nll over all classes, as the training loss. classes: per class `loss` (weighted), `nll` and
    `accuracy` (every supervised token counts the same), counts. All in nats per token.
    """

    loss: float
    classes: dict[str, dict[str, float | int | None]]
    matrix: ConditionMatrix


def evaluate(model: Any, data: HeldOutData, ranks: Ranks, *, seed: int) -> Evaluation:
    """Score the held-out splits. model: the DeepSpeed engine or a PackedCausalLM; all ranks call it.

    Dropout is off meanwhile; no random number is drawn and no state of training is touched.
    """
    was_training = model.training
    model.eval()
    try:
        own = _score(model, data.validation, data.validation_packs, data, ranks)
        others = _score(model, data.others, data.others_packs, data, ranks)
    finally:
        model.train(was_training)
    return summarize(own, others, data, seed=seed)


@torch.no_grad()
def _score(model: Any, split: PreparedSplit, packs: Packs, data: HeldOutData, ranks: Ranks) -> np.ndarray:
    """float64[rows, 4] on every rank: sums over each row's supervised tokens (NLL, ...)."""
    sums = torch.zeros(len(split), 4, dtype=torch.float64, device=ranks.device)
    for number in range(ranks.rank, -(-len(packs) // ranks.num_ranks) * ranks.num_ranks, ranks.num_ranks):
        # every rank runs as many packs: in ZeRO-3 they gather weights together
        in_use = number < len(packs)
        rows = packs.rows[packs.offsets[number] : packs.offsets[number + 1]] if in_use else packs.rows[:0]
        batch = pack_batch(split, rows, data.shape)
        sequences = np.searchsorted(batch.cu_seqlens_S1.numpy(), batch.supervised_rows_N.numpy(), side="right") - 1
        rows_N = torch.from_numpy(rows[sequences]).to(ranks.device)
        batch = batch.to(ranks.device)
        scores = model(batch, score=True)
        weights_N = batch.target_weights_T.index_select(0, batch.supervised_rows_N).double()
        targets_N = batch.target_ids_T.index_select(0, batch.supervised_rows_N)
        nll_N, correct_N = scores.nll_N.double(), (scores.predicted_N == targets_N).double()
        sums.index_add_(0, rows_N, torch.stack((nll_N, nll_N * weights_N, correct_N, correct_N * weights_N), dim=1))
    if ranks.num_ranks > 1:
        torch.distributed.all_reduce(sums)
    return sums.cpu().numpy()


def summarize(own: np.ndarray, others: np.ndarray, data: HeldOutData, *, seed: int) -> Evaluation:
    """Means and matrix from the sums of rows (`_score`) of the two splits."""
    manifest, split = data.manifest, data.validation
    names = [row.name for row in manifest.classes]
    classes = {name: _class_means(own, split, split.class_id == class_id) for class_id, name in enumerate(names)}
    return Evaluation(
        loss=float(own[:, WEIGHTED_NLL].sum() / split.weight_sum.sum()),
        classes=classes,
        matrix=_matrix(own, others, data, names, seed=seed),
    )


def _class_means(own: np.ndarray, split: PreparedSplit, mask: np.ndarray) -> dict[str, float | int | None]:
    weight, tokens = float(split.weight_sum[mask].sum()), int(split.num_supervised_tokens[mask].sum())
    sums = own[mask].sum(axis=0)
    return {
        "loss": float(sums[WEIGHTED_NLL]) / weight if weight else None,
        "nll": float(sums[NLL]) / tokens if tokens else None,
        "accuracy": float(sums[CORRECT]) / tokens if tokens else None,
        "conversations": int(np.count_nonzero(mask)),
        "supervised_tokens": tokens,
    }


def _matrix(
    own: np.ndarray, others: np.ndarray, data: HeldOutData, names: Sequence[str], *, seed: int
) -> ConditionMatrix:
    validation_rows = np.unique(data.others.validation_row)
    nll = np.full((len(validation_rows), len(data.manifest.conditions)), np.nan)
    nll[np.arange(len(nll)), data.validation.condition_id[validation_rows]] = own[validation_rows, NLL]
    slots = np.searchsorted(validation_rows, data.others.validation_row)
    nll[slots, data.others.condition_id] = others[:, NLL]
    return condition_matrix(
        nll,
        data.validation.num_supervised_tokens[validation_rows],
        data.validation.class_id[validation_rows],
        class_names=names,
        class_conditions=[row.condition for row in data.manifest.classes],
        conditions=data.manifest.conditions,
        seed=seed,
    )
