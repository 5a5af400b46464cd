"""The run folder's files while a run writes them."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from data_pipeline.errors import UserError
from data_pipeline.files import cannot_write
from ochat_train.distributed.ranks import Ranks
from ochat_train.evaluation.results import ValidationResult
from ochat_train.report.progress_line import ProgressLine
from ochat_train.runs.lines import (
    ANOMALIES_FILE,
    BENCHMARKS_FILE,
    EXPERTS_FILE,
    METRICS_FILE,
    SAMPLES_FILE,
    STARTS_FILE,
    VALIDATION_FILE,
    read_lines,
)
from ochat_train.runs.metrics import ExpertShares, StepMetrics
from ochat_train.runs.starts import RunStart, utc_time
from ochat_train.system.durable import replace_text
from ochat_train.system.json_lines import append_row, json_line
from ochat_train.tracking.delivery import Trackers
from ochat_train.tracking.protocol import RunFacts

_REMEDY = "make room there, and start again to resume from the newest checkpoint: the lines that are missing come back"


class MetricsWriter:
    """Writes logged steps, validations and anomalies into the run folder, and hands the first two to trackers.

    Files are only appended to, by whole lines. A resumed run continues after its last step.

    A write that fails is kept in `failure`, and nothing is written after it: only rank 0 writes, and the others would
    wait for it. `loop.run_steps` ends the run with it on all ranks together, before the next checkpoint, so that the
    run resumes from one whose lines are all there.

    check_folder: raises UserError where the folder is no longer the run's. facts: what starts.jsonl says of this start.
    """

    def __init__(
        self,
        output_dir: Path,
        trackers: Trackers,
        *,
        first_step: int,
        check_folder: Callable[[], None] = lambda: None,
        facts: RunFacts | None = None,
    ) -> None:
        self._folder, self._trackers, self._check_folder = output_dir, trackers, check_folder
        self.failure: UserError | None = None
        if facts is not None:  # before the rows that an earlier start has lost are removed
            start = RunStart(
                step=first_step,
                time=utc_time(),
                previous_end=_last_time(output_dir),
                hardware=facts.hardware,
                versions=facts.versions,
            )
            self._append(STARTS_FILE, start.to_json())
        for name in (METRICS_FILE, VALIDATION_FILE, SAMPLES_FILE, EXPERTS_FILE, BENCHMARKS_FILE):
            if name in (EXPERTS_FILE, BENCHMARKS_FILE) and not (output_dir / name).exists():
                continue  # only mixtures of experts, and recipes with benchmarks, have it
            self._try(output_dir / name, lambda path: _keep_until(path, first_step))

    @property
    def anomalies_file(self) -> Path:
        """Where anomalies are written."""
        return self._folder / ANOMALIES_FILE

    def write(self, metrics: StepMetrics) -> None:
        """Write the metrics of one step to all places."""
        self._append(METRICS_FILE, metrics.to_json())
        self._trackers.log_step(metrics)

    def write_validation(self, result: ValidationResult) -> None:
        """Write a validation, its samples and benchmarks to all places."""
        if result.validation is not None:
            self._append(VALIDATION_FILE, result.validation.to_json())
        for sample in result.samples:
            self._append(SAMPLES_FILE, sample.to_json())
        if result.benchmarks is not None:
            self._append(BENCHMARKS_FILE, result.benchmarks.to_json())
        self._trackers.log_validation(result)

    def write_experts(self, shares: ExpertShares) -> None:
        """Write where the tokens of some steps went, into a file that only mixtures of experts have."""
        self._append(EXPERTS_FILE, shares.to_json())

    def write_anomaly(self, entry: dict[str, Any]) -> None:
        """Write what was wrong with a step."""
        self._append(ANOMALIES_FILE, entry)

    def require_written(self) -> None:
        """Raise UserError if a line could not be written, or the folder is no longer the run's."""
        if self.failure is not None:
            raise self.failure
        self._check_folder()

    def _append(self, name: str, row: dict[str, Any]) -> None:
        self._try(self._folder / name, lambda path: append_row(path, row))

    def _try(self, path: Path, write: Callable[[Path], None]) -> None:
        if self.failure is not None:
            return
        try:
            self._check_folder()
            write(path)
        except OSError as error:
            self.failure = cannot_write(path, error, _REMEDY)
        except UserError as error:
            self.failure = error


@contextlib.contextmanager
def open_outputs(
    output_dir: Path,
    trackers: Trackers,
    ranks: Ranks,
    *,
    first_step: int,
    num_steps: int,
    check_folder: Callable[[], None] = lambda: None,
    facts: RunFacts | None = None,
) -> Iterator[tuple[MetricsWriter | None, ProgressLine]]:
    """The writer of the run folder's files (rank 0) and the progress line, which is closed whatever ends the steps, so
    before a message about it. check_folder, facts: as in `MetricsWriter`.
    """
    writer = None
    if ranks.is_main:
        writer = MetricsWriter(output_dir, trackers, first_step=first_step, check_folder=check_folder, facts=facts)
    line = ProgressLine(first_step=first_step, num_steps=num_steps, shown=ranks.is_main)
    with contextlib.closing(line):
        yield writer, line


def _last_time(output_dir: Path) -> str | None:
    """When an earlier start logged its last step; None where there is none, or it cannot be read."""
    try:
        row = json.loads((output_dir / METRICS_FILE).read_bytes().rsplit(b"\n", 2)[-2])
        return row["time"] if isinstance(row["time"], str) else None
    except (OSError, ValueError, RecursionError, IndexError, KeyError, TypeError):
        return None


def _keep_until(path: Path, step: int) -> None:
    """Remove the lines of later steps, which an earlier start of the run has written."""
    kept = [line for line in read_lines(path) if line["step"] <= step] if step else []
    replace_text(path, "".join(map(json_line, kept)))
