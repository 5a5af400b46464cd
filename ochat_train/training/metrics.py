"""From loss sums to the numbers that a person reads."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from ochat_train.runs.metrics import ClassMeans, EpochMeans, ExpertMeans, ExpertShares, Means
from ochat_train.system.json_values import finite_or_none
from ochat_train.training.step import ExpertSums


def means_of(per_class: torch.Tensor, class_names: Sequence[str], *, tokens_per_class: Sequence[int]) -> Means:
    """Means of one or several steps.

    per_class: float64[C, 5], sums as in loss.LossSums. tokens_per_class: all tokens of each class, prompts included.
    """
    total_weight = float(per_class[:, 1].sum())
    rows = zip(class_names, per_class, tokens_per_class, strict=True)
    classes = {name: _class_means(row, total_weight, num_tokens) for name, row, num_tokens in rows}
    whole = _class_means(per_class.sum(dim=0), total_weight, sum(tokens_per_class))
    return Means(
        loss=whole.loss,
        accuracy=whole.accuracy,
        tokens=whole.tokens,
        supervised_tokens=whole.supervised_tokens,
        effective_tokens=whole.effective_tokens,
        weight=finite_or_none(total_weight),
        classes=classes,
    )


def _class_means(sums: torch.Tensor, total_weight: float, num_tokens: int) -> ClassMeans:
    nll, weight, correct, supervised, squared = sums.tolist()
    return ClassMeans(
        loss=_ratio(nll, weight),
        accuracy=_ratio(correct, weight),
        tokens=int(num_tokens),
        supervised_tokens=int(supervised),
        weight_share=_ratio(weight, total_weight),
        effective_tokens=_ratio(weight * weight, squared),
    )


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole and math.isfinite(part) and math.isfinite(whole) else None


class EpochSums:
    """Adds up the steps of an epoch, for its summary. first_step: number of steps that an earlier process took."""

    def __init__(self, *, num_classes: int, first_step: int, steps_per_epoch: Sequence[int]) -> None:
        self._empty = torch.zeros(num_classes, 5, dtype=torch.float64), [0] * num_classes
        self._steps_per_epoch = steps_per_epoch
        self._epoch, (self._per_class, self._tokens) = 0, self._empty
        self._steps_before = self._last_step = first_step

    def add(self, epoch: int, per_class: torch.Tensor, tokens_per_class: Sequence[int]) -> None:
        """Add the next step; a step whose loss is not finite is left out, as it did not update the model."""
        if epoch != self._epoch:
            self._epoch, (self._per_class, self._tokens) = epoch, self._empty
            self._steps_before = self._last_step
        self._last_step += 1
        if bool(per_class.isfinite().all()):
            self._per_class = self._per_class + per_class
            self._tokens = [sum(pair) for pair in zip(self._tokens, tokens_per_class, strict=True)]

    def metrics(self, class_names: Sequence[str]) -> EpochMeans | None:
        """The means of the epoch so far, None where no step was added."""
        num_steps = self._last_step - self._steps_before
        if num_steps == 0:
            return None
        is_whole = num_steps == self._steps_per_epoch[self._epoch]
        return EpochMeans(
            epoch=self._epoch,
            steps=None if is_whole else (self._steps_before + 1, self._last_step),
            means=means_of(self._per_class, class_names, tokens_per_class=self._tokens),
        )


def expert_means(sums: ExpertSums, *, num_tokens: int) -> ExpertMeans | None:
    """How the experts of a step were used; None for models without. num_tokens: of the step, padding not counted."""
    if sums.router_loss is None and sums.counts_LE is None:
        return None
    shares = [] if sums.counts_LE is None else [share for layer in _shares(sums.counts_LE) for share in layer]
    known = [share for share in shares if share is not None]
    return ExpertMeans(
        router_aux_loss=None if sums.router_loss is None else finite_or_none(sums.router_loss / num_tokens),
        least_share=min(known, default=None),
        most_share=max(known, default=None),
        unused_experts=None if sums.counts_LE is None else int((sums.counts_LE == 0).sum()),
    )


class ExpertTable:
    """Adds up where tokens went over the steps between two lines of experts.jsonl. first_step: steps before these."""

    def __init__(self, *, first_step: int) -> None:
        self._first_step = self._last_step = first_step
        self._counts_LE: torch.Tensor | None = None

    def add(self, sums: ExpertSums) -> None:
        """Add the next step."""
        self._last_step += 1
        if sums.counts_LE is not None:
            self._counts_LE = sums.counts_LE if self._counts_LE is None else self._counts_LE + sums.counts_LE

    def take(self) -> ExpertShares | None:
        """The steps since the last call; None where nothing was counted."""
        counts, steps = self._counts_LE, (self._first_step + 1, self._last_step)
        self._first_step, self._counts_LE = self._last_step, None
        return None if counts is None else ExpertShares(steps=steps, layers=_shares(counts, digits=6))


def _shares(counts_LE: torch.Tensor, *, digits: int | None = None) -> list[list[float | None]]:
    """Each expert's share of the tokens of its layer."""
    rows = []
    for counts in counts_LE.tolist():
        total = sum(counts)
        shares = [_ratio(count, total) for count in counts]
        rows.append([share if share is None or digits is None else round(share, digits) for share in shares])
    return rows
