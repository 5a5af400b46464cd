"""One optimizer step: what goes in (`Step`), what is done (`train_step`), and what comes out (`StepSums`).

The loss is scaled here and nowhere else: `accumulate_gradients` divides the weighted sum of every micro-batch by the
step's denominator, which `TrainingPlan.denominator` (data_pipeline/plan/plan.py) computes for all ranks together.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from ochat_train.distributed.engine import TrainingEngine
from ochat_train.model.batch import PackedBatch
from ochat_train.model.loss import LossSums
from ochat_train.training.engine import update


@dataclass(frozen=True, kw_only=True)
class Step:
    """One optimizer step as one rank takes it."""

    number: int
    """Steps of the run before this one."""

    epoch: int
    """Epoch of the step, from 0."""

    denominator: float
    """Sum of weights that the loss sum of all ranks is divided by (`train.loss_denominator`)."""

    packs: tuple[tuple[np.ndarray, ...], ...]
    """`packs[m][p]`: rows of the prepared dataset in pack p of this rank's micro-batch m, int64[conversations]; no rows
    in a pack of padding."""

    micro_batches: Iterator[PackedBatch]
    """This rank's micro-batches, as many as `packs` has; can be walked once. On the CPU, pinned for a GPU."""

    squared_lengths: float
    """Sum over the conversations of all ranks of length squared, in tokens squared: the cost of attention."""

    tokens_per_class: tuple[int, ...]
    """Tokens of the conversations of all ranks by class, prompts included, padding not."""


@dataclass(frozen=True, kw_only=True)
class ExpertSums:
    """What a step of a mixture of experts adds up to, over all ranks and micro-batches."""

    router_loss: float | None
    """Sum of `LossSums.router_loss`: divided by the step's tokens it is what was added to the loss. None for none."""

    counts_LE: torch.Tensor | None
    """int64[L, E], tokens of each expert of each layer, padding not counted. None where they were not counted."""


@dataclass(frozen=True, kw_only=True)
class StepSums:
    """Sums of one optimizer step over all ranks and micro-batches."""

    per_class: torch.Tensor
    """float64[C, 5], as in `LossSums`."""

    num_tokens: int
    """Tokens that are not padding."""

    grad_norm: float
    """2-norm of the gradient over all parameters, before clipping; not finite where the update was left out."""

    bad_micro_batches: list[int]
    """Numbers (from 0) of this rank's micro-batches whose loss is not finite; empty where the step was taken."""

    stop: bool
    """Whether any rank was asked to stop."""

    experts: ExpertSums
    """All of it None for models without experts."""


def train_step(
    engine: TrainingEngine,
    micro_batches: Iterable[PackedBatch],
    *,
    denominator: float,
    learning_rate: float,
    num_ranks: int,
    num_step_tokens: int | None = None,
    stop: bool = False,
) -> StepSums:
    """One optimizer step over all ranks: gradient of sum(w * nll) / denominator, clip, AdamW update.

    micro_batches: this rank's, as many as the engine's gradient accumulation steps. num_step_tokens: of all ranks,
    without padding; needed by models with a router loss, whose mean over the packs of the step, by their tokens, is
    added. stop: whether this rank was asked to stop; all ranks learn of it with the sums.

    A loss or gradient that is not finite, on any rank, leaves the update out on all.
    """
    for group in engine.optimizer.param_groups:
        group["lr"] = learning_rate
    own = accumulate_gradients(
        engine, micro_batches, denominator=denominator, num_ranks=num_ranks, num_step_tokens=num_step_tokens
    )
    others = own.per_class.new_tensor([own.num_tokens, stop])
    parts = [own.per_class, others, *(part for part in (own.router_loss, own.expert_counts) if part is not None)]
    everything = torch.cat([part.double().flatten() for part in parts])
    torch.distributed.all_reduce(everything)
    grad_norm = update(engine)
    everything = everything.cpu()  # waits for the GPU, so after the update has been given to it
    per_class, (num_tokens, any_stop), *experts = everything.split([part.numel() for part in parts])
    is_finite = math.isfinite(grad_norm)
    return StepSums(
        per_class=per_class.reshape(own.per_class.shape),
        num_tokens=int(num_tokens),
        grad_norm=grad_norm,
        bad_micro_batches=[] if is_finite else (~own.losses.isfinite()).nonzero()[:, 0].tolist(),
        stop=bool(any_stop),
        experts=_expert_sums(own, experts),
    )


def _expert_sums(own: RankSums, sums: list[torch.Tensor]) -> ExpertSums:
    """sums: over all ranks of what this rank has of router loss and expert counts, in this order."""
    router_loss = None if own.router_loss is None else float(sums[0])
    counts = None if own.expert_counts is None else sums[-1].reshape(own.expert_counts.shape).long()
    return ExpertSums(router_loss=router_loss, counts_LE=counts)


@dataclass(frozen=True, kw_only=True)
class RankSums:
    """Sums of one rank's micro-batches. per_class: float64[C, 5], as in `LossSums`. losses: float32[M], weighted nll of
    each micro-batch. num_tokens: without padding. router_loss, expert_counts: as in `ExpertSums`. Tensors are on the
    rank's device.
    """

    per_class: torch.Tensor
    losses: torch.Tensor
    num_tokens: int
    router_loss: torch.Tensor | None
    expert_counts: torch.Tensor | None


def accumulate_gradients(
    engine: TrainingEngine,
    micro_batches: Iterable[PackedBatch],
    *,
    denominator: float,
    num_ranks: int,
    num_step_tokens: int | None = None,
) -> RankSums:
    """Forward and backward of all micro-batches of a step; the gradient stays in the engine.

    num_step_tokens: as in `train_step`. DeepSpeed averages gradients over ranks, which the factor num_ranks undoes.
    """
    device = next(engine.module.parameters()).device
    per_class: torch.Tensor | float = 0.0
    num_tokens = 0
    losses: list[torch.Tensor] = []
    router_loss, expert_counts = None, None
    for batch in micro_batches:
        if losses:
            engine.step()  # not at a boundary: counts the micro-batch
        sums: LossSums = engine(batch.to(device))
        losses.append(sums.weighted_nll.detach())
        # a loss that is not finite must not be lost between finite gradients: it makes all of them NaN
        scale = torch.where(losses[-1].isfinite(), num_ranks / denominator, torch.nan)
        loss = sums.weighted_nll * scale
        if sums.router_loss is not None:
            assert num_step_tokens, "a model with a router loss needs the number of tokens of the step"
            loss = loss + sums.router_loss * (num_ranks / num_step_tokens)
        engine.backward(loss, scale_wrt_gas=False)
        per_class = per_class + sums.per_class.double()
        num_tokens += batch.num_tokens
        router_loss = _plus(router_loss, sums.router_loss)
        expert_counts = _plus(expert_counts, sums.expert_counts)
    expected = engine.gradient_accumulation_steps()
    assert len(losses) == expected, f"{len(losses)} micro-batches in a step of {expected}"
    assert isinstance(per_class, torch.Tensor), "a step has at least one micro-batch"
    return RankSums(
        per_class=per_class,
        losses=torch.stack(losses),
        num_tokens=num_tokens,
        router_loss=router_loss,
        expert_counts=expert_counts,
    )


def _plus(total: torch.Tensor | None, part: torch.Tensor | None) -> torch.Tensor | None:
    """A sum with one part more; None where there are no parts."""
    if part is None:
        return total
    return part.detach() if total is None else total + part.detach()
