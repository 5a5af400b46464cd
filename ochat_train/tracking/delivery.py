"""Hands steps and validations to a tracker in a thread of its own: training never waits for it, nor fails with it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from queue import SimpleQueue

from ochat_train.evaluation.results import ValidationResult
from ochat_train.runs.metrics import StepMetrics
from ochat_train.tracking.protocol import RunFacts, Tracker

CAPACITY = 10_000  # steps and validations that may wait for a tracker, a few KB each
CLOSE_SECONDS = 30.0  # all trackers together may take so long at the end of a run
STOPPED_CLOSE_SECONDS = 5.0  # and so long where it was stopped or failed: launchers kill what is left after 30 s

Event = Callable[[Tracker], None]


class Delivery:
    """The way to one tracker. `put` never waits: an event that finds CAPACITY others waiting is not delivered.

    What was not delivered, for whatever reason, is counted and said when it is closed; the run folder's files hold it
    anyway.
    say: prints a line for the user; called from both threads.
    """

    def __init__(self, tracker: Tracker, facts: RunFacts, *, say: Callable[[str], None]) -> None:
        self._tracker, self._say, self._folder = tracker, say, facts.output_dir
        self._events: SimpleQueue[Event | None] = SimpleQueue()
        self._given, self._delivered = 0, 0
        self._is_off, self._is_behind, self._done = False, False, False
        self._thread = threading.Thread(target=self._run, args=(facts,), name=f"tracker {tracker.name}", daemon=True)
        self._thread.start()

    def put(self, event: Event) -> None:
        """Deliver an event when the tracker is ready for it."""
        self._given += 1
        if self._is_off:
            return
        if self._events.qsize() < CAPACITY:
            self._events.put(event)
        elif not self._is_behind:
            self._is_behind = True
            self._say(
                f"{self._tracker.name}: too slow, {CAPACITY:,} steps and validations wait; training goes on without it"
            )

    def finish(self, *, done: bool) -> None:
        """Nothing more comes; `join` waits. done: whether the run reached its last step."""
        self._done = done
        self._events.put(None)

    def join(self, *, deadline: float) -> None:
        """Wait until the tracker is done or time.monotonic() is `deadline`, and say what it has not got."""
        self._thread.join(max(0.0, deadline - time.monotonic()))
        problems = []
        if self._thread.is_alive():
            self._is_off = True
            problems.append("does not answer and was left behind")
            self._tracker.abandon()
        if missing := self._given - self._delivered:
            problems.append(f"{missing:,} of {self._given:,} steps and validations were not delivered")
        if problems:
            files = "metrics.jsonl, validation.jsonl and samples.jsonl"
            self._say(f"{self._tracker.name}: {'; '.join(problems)}; {self._folder} has everything in {files}")

    def _run(self, facts: RunFacts) -> None:
        try:
            self._say(f"{self._tracker.name}: {self._tracker.start(facts)}")
            while (event := self._events.get()) is not None:
                event(self._tracker)
                self._delivered += 1
            self._tracker.close(done=self._done)
        except BaseException as error:  # SystemExit, too: nothing that a library does here may end the training
            if not self._is_off:
                self._is_off = True
                self._say(f"{self._tracker.name}: {_one_line(error)}; it is switched off, training goes on")
                self._tracker.abandon()


class Trackers:
    """All trackers of a run; none is a valid number."""

    def __init__(self, trackers: Sequence[Tracker], facts: RunFacts, *, say: Callable[[str], None]) -> None:
        self._deliveries = [Delivery(tracker, facts, say=say) for tracker in trackers]

    def log_step(self, metrics: StepMetrics) -> None:
        """Deliver a step."""
        for delivery in self._deliveries:
            delivery.put(lambda tracker: tracker.log_step(metrics))

    def log_validation(self, result: ValidationResult) -> None:
        """Deliver a validation and its samples."""
        for delivery in self._deliveries:
            delivery.put(lambda tracker: tracker.log_validation(result))

    def close(self, *, done: bool, most_seconds: float) -> None:
        """Let all trackers deliver what they have, for most_seconds at most, and say what is missing; once."""
        deadline = time.monotonic() + most_seconds
        for delivery in self._deliveries:
            delivery.finish(done=done)
        for delivery in self._deliveries:
            delivery.join(deadline=deadline)
        self._deliveries = []


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}{f': {text}' if text else ''}"[:300]
