"""Hands steps and validations to a tracker in a separate thread: training neither waits for it nor fails with it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from queue import SimpleQueue

from ochat_train.evaluation.results import ValidationResult
from ochat_train.runs.metrics import StepMetrics
from ochat_train.tracking.protocol import RunFacts, Tracker

CAPACITY = 10_000  # steps and validations that may wait for a tracker, a few KB each
CLOSE_SECONDS = 30.0  # for all trackers together, at the end of a run
STOPPED_CLOSE_SECONDS = 5.0  # the same for a run that was stopped or failed: launchers kill what is left after 30 s

Event = Callable[[Tracker], None]


class Delivery:
    """The queue of one tracker. `put` never waits: with `capacity` events in the queue, further ones are not delivered.

    Whatever was not delivered is counted and reported at the end; the run folder's files have it anyway.
    report: prints a line for the user; called from both threads.
    """

    def __init__(
        self, tracker: Tracker, facts: RunFacts, *, report: Callable[[str], None], capacity: int = CAPACITY
    ) -> None:
        self._tracker, self._report, self._folder, self._capacity = tracker, report, facts.output_dir, capacity
        self._events: SimpleQueue[Event | None] = SimpleQueue()
        self._has_folder = self._folder.is_dir()
        self._given, self._delivered = 0, 0
        self._is_off, self._is_behind, self._done = False, False, False
        self._thread = threading.Thread(target=self._run, args=(facts,), name=f"tracker {tracker.name}", daemon=True)
        self._thread.start()

    def put(self, event: Event) -> None:
        """Deliver an event when the tracker is ready for it."""
        self._given += 1
        if self._is_off:
            return
        if self._events.qsize() < self._capacity:
            self._events.put(event)
        elif not self._is_behind:
            self._is_behind = True
            self._report(
                f"{self._tracker.name}: too slow, {self._capacity:,} steps and validations are waiting; training "
                "continues without it"
            )

    def finish(self, *, done: bool) -> None:
        """There are no more events; `join` waits. done: whether the run reached its last step."""
        self._done = done
        self._events.put(None)

    def join(self, *, deadline: float) -> None:
        """Wait until the tracker is done, or time.monotonic() is `deadline`, and report what was not delivered."""
        self._thread.join(max(0.0, deadline - time.monotonic()))
        problems = []
        if self._thread.is_alive():
            self._is_off = True
            problems.append("does not answer and was dropped")
            self._tracker.abandon()
        if missing := self._given - self._delivered:
            problems.append(f"{missing:,} of {self._given:,} steps and validations were not delivered")
        if problems:
            files = "metrics.jsonl, validation.jsonl and samples.jsonl"
            self._report(f"{self._tracker.name}: {'; '.join(problems)}; {self._folder} has everything in {files}")

    def _run(self, facts: RunFacts) -> None:
        try:
            self._report(f"{self._tracker.name}: {self._tracker.start(facts)}")
            while (event := self._events.get()) is not None:
                if self._has_folder and not self._folder.is_dir():  # its library might make half a new one
                    raise FileNotFoundError(f"{self._folder} is no longer there")
                event(self._tracker)
                self._delivered += 1
            self._tracker.close(done=self._done)
        except BaseException as error:  # also SystemExit: nothing that a library does here may end the training
            if not self._is_off:
                self._is_off = True
                self._report(f"{self._tracker.name}: {_one_line(error)}; it is switched off, training continues")
                self._tracker.abandon()


class Trackers:
    """All trackers of a run; there may be none."""

    def __init__(
        self,
        trackers: Sequence[Tracker],
        facts: RunFacts,
        *,
        report: Callable[[str], None],
        capacity: int = CAPACITY,
    ) -> None:
        self._deliveries = [Delivery(tracker, facts, report=report, capacity=capacity) for tracker in trackers]

    def log_step(self, metrics: StepMetrics) -> None:
        """Deliver a step."""
        for delivery in self._deliveries:
            delivery.put(lambda tracker: tracker.log_step(metrics))

    def log_validation(self, result: ValidationResult) -> None:
        """Deliver a validation and its samples."""
        for delivery in self._deliveries:
            delivery.put(lambda tracker: tracker.log_validation(result))

    def close(self, *, done: bool, most_seconds: float) -> None:
        """Let all trackers deliver what they have, for `most_seconds` at most, and report what is missing; once."""
        deadline = time.monotonic() + most_seconds
        for delivery in self._deliveries:
            delivery.finish(done=done)
        for delivery in self._deliveries:
            delivery.join(deadline=deadline)
        self._deliveries = []


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}{f': {text}' if text else ''}"[:300]
