"""Trackers that misbehave, used instead of the recipe's."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ochat_train.evaluation.results import ValidationResult
from ochat_train.runs.metrics import StepMetrics
from ochat_train.tracking.protocol import RunFacts
from ochat_train.training.hooks import Hooks


class FakeTracker:
    """Keeps what it is given; does `at_start`, `at_log` and `at_abandon` before that."""

    def __init__(
        self,
        *,
        name: str = "fake",
        at_start: Callable[[], Any] = lambda: None,
        at_log: Callable[[], Any] = lambda: None,
        at_abandon: Callable[[], Any] = lambda: None,
    ) -> None:
        self.name = name
        self._at_start, self._at_log, self._at_abandon = at_start, at_log, at_abandon
        self.steps: list[int] = []
        self.closed: bool | None = None
        self.is_abandoned = False

    def start(self, facts: RunFacts) -> str:
        self._at_start()
        return "started"

    def log_step(self, metrics: StepMetrics) -> None:
        self._at_log()
        self.steps.append(metrics.step)

    def log_validation(self, result: ValidationResult) -> None:
        self._at_log()

    def close(self, *, done: bool) -> None:
        self.closed = done

    def abandon(self) -> None:
        self._at_abandon()
        self.is_abandoned = True


def fail() -> None:
    raise SystemExit("no such project")


def hang() -> None:
    threading.Event().wait()


KINDS: dict[str, Callable[[], FakeTracker]] = {
    "raises at start": lambda: FakeTracker(at_start=fail),
    "raises at log": lambda: FakeTracker(at_log=fail),
    "hangs at start": lambda: FakeTracker(at_start=hang),
    "hangs at log": lambda: FakeTracker(at_log=hang),
    "is slow": lambda: FakeTracker(at_log=lambda: time.sleep(0.02)),
}


def tracked_by(kind: str, hooks: Hooks) -> Hooks:
    """The hooks of a training that has this tracker and no other, and does not wait for one that hangs."""
    return replace(hooks, trackers=lambda settings: [KINDS[kind]()], close_seconds=0.1 if "hangs" in kind else 60.0)
