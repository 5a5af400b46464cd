"""From loss sums to the means that a person reads, as in metrics.jsonl."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch


def step_metrics(
    per_class: torch.Tensor, class_names: Sequence[str], *, tokens_per_class: Sequence[int]
) -> dict[str, Any]:
    """Means of one or several steps. `loss` is the weighted mean nll in nats per token, as `accuracy` is a weighted
    share.

    per_class: float64[C, 5], sums as in `LossSums`. tokens_per_class: all tokens of each class, prompts included.
    effective_tokens: (sum w)^2 / sum w^2 over supervised tokens (Kish's effective sample size): how many tokens of
    equal weight would give an equally certain mean.
    Means are None for a class without tokens, and for a loss that is not finite.
    """
    total_weight = float(per_class[:, 1].sum())
    rows = zip(class_names, per_class, tokens_per_class, strict=True)
    classes = {name: _means(row, total_weight, num_tokens) for name, row, num_tokens in rows}
    whole = _means(per_class.sum(dim=0), total_weight, sum(tokens_per_class))
    del whole["weight_share"]
    return {**whole, "weight": total_weight if math.isfinite(total_weight) else None, "classes": classes}


def _means(sums: torch.Tensor, total_weight: float, num_tokens: int) -> dict[str, Any]:
    nll, weight, correct, supervised, squared = sums.tolist()
    return {
        "loss": _ratio(nll, weight),
        "accuracy": _ratio(correct, weight),
        "tokens": int(num_tokens),
        "supervised_tokens": int(supervised),
        "weight_share": _ratio(weight, total_weight),
        "effective_tokens": _ratio(weight * weight, squared),
    }


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

    def metrics(self, class_names: Sequence[str]) -> dict[str, Any] | None:
        """The means of the epoch so far, None where no step was added.

        `steps`: the first and the last step that are in it, counted from 1 over the whole run; None for a whole epoch.
        """
        num_steps = self._last_step - self._steps_before
        if num_steps == 0:
            return None
        is_whole = num_steps == self._steps_per_epoch[self._epoch]
        return {
            "epoch": self._epoch,
            "steps": None if is_whole else (self._steps_before + 1, self._last_step),
            **step_metrics(self._per_class, class_names, tokens_per_class=self._tokens),
        }
