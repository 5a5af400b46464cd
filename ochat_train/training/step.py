"""One optimizer step: forward, backward, reduce, clip, update."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from ochat_train.model.batch import PackedBatch
from ochat_train.training.engine import update


def train_step(
    engine: Any,
    batches: Iterable[PackedBatch],
    *,
    denominator: float,
    learning_rate: float,
    num_ranks: int,
    stop: bool = False,
) -> StepSums:
    """One optimizer step over all ranks: gradient of sum(w * nll) / denominator, clip, AdamW update.

    batches: this rank's micro-batches, as many as the engine's gradient accumulation steps. denominator: weight by
    which the loss sum of all ranks and micro-batches is divided; DeepSpeed averages gradients over ranks, which the
    factor num_ranks undoes. stop: whether this rank was asked to stop; all ranks learn of it with the sums.

    Returns the sums over all ranks. A loss or gradient that is not finite, on any rank, leaves the update out on all.
    """
    device = next(engine.module.parameters()).device
    for group in engine.optimizer.param_groups:
        group["lr"] = learning_rate
    per_class: torch.Tensor | float = 0.0
    num_tokens = 0
    losses = []
    for index, batch in enumerate(batches):
        if index:
            engine.step()  # not at a boundary: counts the micro-batch
        sums = engine(batch.to(device))
        losses.append(sums.weighted_nll.detach())
        # a loss that is not finite must not be lost between finite gradients: it makes all of them NaN
        scale = torch.where(losses[-1].isfinite(), num_ranks / denominator, torch.nan)
        engine.backward(sums.weighted_nll * scale, scale_wrt_gas=False)
        per_class = per_class + sums.per_class.double()
        num_tokens += batch.num_tokens
    assert isinstance(per_class, torch.Tensor), "a step has at least one micro-batch"
    everything = torch.cat((per_class.flatten(), per_class.new_tensor([num_tokens, stop])))
    torch.distributed.all_reduce(everything)
    grad_norm = update(engine)
    everything = everything.cpu()  # waits for the GPU, so after the update has been given to it
    is_finite = math.isfinite(grad_norm)
    bad_micro_batches = [] if is_finite else (~torch.stack(losses).isfinite()).nonzero()[:, 0].tolist()
    return StepSums(
        per_class=everything[:-2].reshape(per_class.shape),
        num_tokens=int(everything[-2]),
        grad_norm=grad_norm,
        bad_micro_batches=bad_micro_batches,
        stop=bool(everything[-1]),
    )


@dataclass(frozen=True, kw_only=True)
class StepSums:
    """Sums of one optimizer step over all ranks and micro-batches.

    per_class: float64[C, 5], as in loss.LossSums. num_tokens: without padding.
    grad_norm: 2-norm of the gradient over all parameters, before clipping; not finite where the update was left out.
    bad_micro_batches: numbers (from 0) of this rank's micro-batches whose loss is not finite.
    stop: whether any rank was asked to stop.
    """

    per_class: torch.Tensor
    num_tokens: int
    grad_norm: float
    bad_micro_batches: list[int]
    stop: bool
