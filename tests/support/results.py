"""Results as a run makes them, with figures that do not matter unless they are given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data_pipeline.ledger import Tally
from ochat_train.runs.metrics import ClassMeans, Means, Speed, StepMetrics
from ochat_train.tracking.delivery import Trackers
from ochat_train.tracking.protocol import RunFacts


def class_means(**figures: Any) -> ClassMeans:
    """A class in a step."""
    given: dict[str, Any] = {
        "loss": 1.0,
        "accuracy": 0.5,
        "tokens": 9,
        "supervised_tokens": 5,
        "weight_share": 1.0,
        "effective_tokens": 5.0,
    }
    return ClassMeans(**{**given, **figures})


def means(classes: Mapping[str, ClassMeans], **figures: Any) -> Means:
    """All classes of a step."""
    given: dict[str, Any] = {
        "loss": 1.0,
        "accuracy": 0.5,
        "tokens": 9,
        "supervised_tokens": 5,
        "effective_tokens": 5.0,
        "weight": 5.0,
    }
    return Means(**{**given, **figures}, classes=classes)


def step_metrics(
    step: int,
    *,
    classes: Mapping[str, ClassMeans] | Sequence[str] = (),
    epoch: int = 0,
    speed: Mapping[str, Any] | None = None,
    time: str | None = None,
    **figures: Any,
) -> StepMetrics:
    """A logged step. classes: names are enough. speed: what differs from a CPU's. figures: of all classes together."""
    if not isinstance(classes, Mapping):
        classes = {name: class_means() for name in classes}
    cpu: dict[str, Any] = {"tokens_per_second": 1000.0, "mfu": None, "memory_gib": None, "data_wait_ratio": 0.0}
    return StepMetrics(
        step=step,
        epoch=epoch,
        means=means(classes, **figures),
        learning_rate=1e-4,
        grad_norm=1.0,
        nonfinite_steps=0,
        speed=Speed(**{**cpu, **(speed or {})}),
        time=time,
    )


def run_facts(output_dir: Path) -> RunFacts:
    """A new run that prepared nothing."""
    return RunFacts(
        name="x",
        output_dir=output_dir,
        first_step=0,
        recipe={},
        classes=[],
        ledger=Tally().result(),
        hardware={},
        versions={},
    )


def no_trackers(output_dir: Path) -> Trackers:
    """For a run that nothing watches."""
    return Trackers([], run_facts(output_dir), report=print)
