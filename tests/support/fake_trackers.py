"""Trackers that misbehave, put in place of the recipe's."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from ochat_train.evaluation.results import ValidationResult
from ochat_train.runs.metrics import StepMetrics
from ochat_train.tracking.protocol import RunFacts
from ochat_train.training import run


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


def install(kind: str) -> Callable[[], None]:
    """Let trainings of this process have this tracker and no other, and wait little for it; returns what undoes
    that.
    """
    before = run.chosen_trackers, run.CLOSE_SECONDS
    run.chosen_trackers = lambda settings: [KINDS[kind]()]
    run.CLOSE_SECONDS = 0.1 if "hangs" in kind else 60.0

    def undo() -> None:
        run.chosen_trackers, run.CLOSE_SECONDS = before

    return undo
