"""The run folder's files while a run writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TextIO

from ochat_train.evaluation.results import ValidationResult
from ochat_train.runs.lines import EXPERTS_FILE, METRICS_FILE, SAMPLES_FILE, VALIDATION_FILE, json_line, rows_of
from ochat_train.runs.metrics import ExpertShares, StepMetrics
from ochat_train.system.durable import replace_text
from ochat_train.tracking.delivery import Trackers


class MetricsWriter:
    """Writes logged steps and validations into the run folder, and hands them to trackers.

    Files are only appended to. A resumed run continues after its last step.
    """

    def __init__(self, output_dir: Path, trackers: Trackers, *, first_step: int) -> None:
        self._files = {
            name: _open_after(output_dir / name, first_step=first_step)
            for name in (METRICS_FILE, VALIDATION_FILE, SAMPLES_FILE)
        }
        self._output_dir, self._first_step, self._trackers = output_dir, first_step, trackers

    def write(self, metrics: StepMetrics) -> None:
        """Write the metrics of one step to all places."""
        self._append(METRICS_FILE, metrics.to_json())
        self._trackers.log_step(metrics)

    def write_validation(self, result: ValidationResult) -> None:
        """Write a validation and its samples to all places."""
        if result.validation is not None:
            self._append(VALIDATION_FILE, result.validation.to_json())
        for sample in result.samples:
            self._append(SAMPLES_FILE, sample.to_json())
        self._trackers.log_validation(result)

    def write_experts(self, shares: ExpertShares) -> None:
        """Write where the tokens of some steps went, into a file that only mixtures of experts have."""
        if EXPERTS_FILE not in self._files:
            path = self._output_dir / EXPERTS_FILE
            self._files[EXPERTS_FILE] = _open_after(path, first_step=self._first_step)
        self._append(EXPERTS_FILE, shares.to_json())

    def _append(self, name: str, document: dict[str, Any]) -> None:
        self._files[name].write(json_line(document))
        self._files[name].flush()

    def close(self) -> None:
        """Finish all files."""
        for file in self._files.values():
            file.close()


def _open_after(path: Path, *, first_step: int) -> TextIO:
    """A file of JSON lines, open for appending after a step; rows of later steps, from an earlier run, are removed."""
    kept = [row for row in rows_of(path) if row["step"] <= first_step] if first_step else []
    replace_text(path, "".join(map(json_line, kept)))
    return path.open("a", encoding="utf-8")
