"""The interface of a tracker, and what it is told about a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from data_pipeline.ledger import Ledger
from data_pipeline.prepared.dataset import PreparedClass
from ochat_train.evaluation.results import ValidationResult
from ochat_train.runs.metrics import StepMetrics


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """What a tracker is told before the first step.

    first_step: steps that an earlier start has done; 0 for a new run. recipe: every value, by key. classes, ledger: of
    the prepared dataset. hardware, versions: what the run computes with.
    """

    name: str
    output_dir: Path
    first_step: int
    recipe: Mapping[str, Any]
    classes: Sequence[PreparedClass]
    ledger: Ledger
    hardware: Mapping[str, str | int | float | None]
    versions: Mapping[str, str]


class Tracker(Protocol):
    """A place where a run can be watched.

    `start`, `log_step`, `log_validation` and `close` are called in this order, in one thread that is not the
    training's; they may take any time and raise anything (delivery.py).
    """

    name: str

    def start(self, facts: RunFacts) -> str:
        """Begin, or continue an earlier part of the same run; returns where the run can be seen, for the user."""
        ...

    def log_step(self, metrics: StepMetrics) -> None:
        """Log a step."""
        ...

    def log_validation(self, result: ValidationResult) -> None:
        """Log a validation, if anything is held out, and its samples."""
        ...

    def close(self, *, done: bool) -> None:
        """Deliver what is left. done: whether the run reached its last step."""
        ...

    def abandon(self) -> None:
        """Do not hold the end of the process: something raised, or does not return. Nothing else is called after it."""
        ...
