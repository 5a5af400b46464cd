"""How a model does on held-out conversations, on all ranks: every conversation scored once, packed as in training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch

from data_pipeline.plan.packing import Packs
from data_pipeline.prepared.dataset import PreparedSplit
from ochat_train.distributed.ranks import Ranks
from ochat_train.evaluation.condition_matrix import ConditionMatrix, condition_matrix
from ochat_train.evaluation.held_out import HeldOutData
from ochat_train.evaluation.results import ClassScores, Evaluation
from ochat_train.model.batch import pack_batch
from ochat_train.system.json_values import finite_or_none

# Called with what is done, how much of it, and of how many. It may raise, on all ranks alike.
Between = Callable[[str, int, int], None]
_PACKS_BETWEEN = 4  # of each rank: what `between` does has to wait for the GPU
NLL, WEIGHTED_NLL, CORRECT, WEIGHTED_CORRECT = range(4)


def nothing_between(what: str, done: int, total: int) -> None:
    """For evaluations that nobody watches."""


@contextmanager
def evaluation_mode(model: Any, *, compiled: bool = False) -> Iterator[None]:
    """No gradients and no dropout in the block.

    compiled: whether the model's layers are compiled. Then they run eagerly, because shapes differ from those of
    training, and compiling would take longer than a few answers do.
    """
    was_training = model.training
    model.eval()
    eager = torch.compiler.set_stance("force_eager") if compiled else nullcontext()
    try:
        with torch.no_grad(), eager:
            yield
    finally:
        model.train(was_training)


def evaluate(
    model: Any, data: HeldOutData, ranks: Ranks, *, seed: int, between: Between = nothing_between
) -> Evaluation:
    """Score the held-out splits. model: the DeepSpeed engine or a PackedCausalLM; all ranks call it.

    between: called on all ranks between packs.

    Dropout is off meanwhile. No random number is drawn, and no state of the training changes.
    """
    with evaluation_mode(model):
        num_packs = len(data.validation_packs) + len(data.others_packs)
        own = _row_sums(
            model,
            data.validation,
            data.validation_packs,
            data,
            ranks,
            between=lambda done: between("validating", done, num_packs),
        )
        others = _row_sums(
            model,
            data.others,
            data.others_packs,
            data,
            ranks,
            between=lambda done: between("validating", len(data.validation_packs) + done, num_packs),
        )
    return summarize(own, others, data, seed=seed)


def _row_sums(
    model: Any, split: PreparedSplit, packs: Packs, data: HeldOutData, ranks: Ranks, *, between: Callable[[int], None]
) -> np.ndarray:
    """float64[rows, 4] on every rank: sums over each row's supervised tokens (NLL, ...). between: called with the packs
    that are done.
    """
    sums = torch.zeros(len(split), 4, dtype=torch.float64, device=ranks.device)
    for number in range(ranks.rank, -(-len(packs) // ranks.num_ranks) * ranks.num_ranks, ranks.num_ranks):
        # all ranks run the same number of packs, because under ZeRO-3 they gather weights together
        if (number // ranks.num_ranks) % _PACKS_BETWEEN == 0:
            between(number - ranks.rank)
        in_use = number < len(packs)
        rows = packs[number] if in_use else packs.rows[:0]
        batch = pack_batch(split, rows, data.shape)
        sequences = np.searchsorted(batch.cu_seqlens_S1.numpy(), batch.supervised_indices_N.numpy(), side="right") - 1
        rows_N = torch.from_numpy(rows[sequences]).to(ranks.device)
        batch = batch.to(ranks.device)
        scores = model(batch, score=True)
        weights_N = batch.target_weights_T.index_select(0, batch.supervised_indices_N).double()
        targets_N = batch.target_ids_T.index_select(0, batch.supervised_indices_N)
        nll_N, correct_N = scores.nll_N.double(), (scores.predicted_N == targets_N).double()
        sums.index_add_(0, rows_N, torch.stack((nll_N, nll_N * weights_N, correct_N, correct_N * weights_N), dim=1))
    if ranks.num_ranks > 1:
        torch.distributed.all_reduce(sums)
    return sums.cpu().numpy()


def summarize(own: np.ndarray, others: np.ndarray, data: HeldOutData, *, seed: int) -> Evaluation:
    """Means and matrix from the sums of rows (`_row_sums`) of the two splits."""
    manifest, split = data.manifest, data.validation
    names = [row.name for row in manifest.classes]
    classes = {name: _class_scores(own, split, split.class_id == class_id) for class_id, name in enumerate(names)}
    return Evaluation(
        loss=finite_or_none(float(own[:, WEIGHTED_NLL].sum() / split.weight_sum.sum())),
        classes=classes,
        matrix=_matrix(own, others, data, names, seed=seed),
    )


def _class_scores(own: np.ndarray, split: PreparedSplit, mask: np.ndarray) -> ClassScores:
    weight, tokens = float(split.weight_sum[mask].sum()), int(split.num_supervised_tokens[mask].sum())
    sums = own[mask].sum(axis=0)
    return ClassScores(
        loss=finite_or_none(float(sums[WEIGHTED_NLL]) / weight) if weight else None,
        nll=finite_or_none(float(sums[NLL]) / tokens) if tokens else None,
        accuracy=finite_or_none(float(sums[CORRECT]) / tokens) if tokens else None,
        conversations=int(np.count_nonzero(mask)),
        supervised_tokens=tokens,
    )


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
