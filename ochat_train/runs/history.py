"""The history of a run, read back from its folder: steps, validations, samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.errors import UserError
from ochat_train.evaluation.results import BenchmarkScores, Sample, Validation
from ochat_train.runs.folder import RunFolder, read_run_folder
from ochat_train.runs.lines import (
    BENCHMARKS_FILE,
    METRICS_FILE,
    SAMPLES_FILE,
    STARTS_FILE,
    VALIDATION_FILE,
    results_of,
)
from ochat_train.runs.metrics import StepMetrics
from ochat_train.runs.starts import RunStart


@dataclass(frozen=True, kw_only=True)
class RunHistory:
    """A run so far. steps, validations, samples, benchmarks, starts: the rows of metrics.jsonl, validation.jsonl,
    samples.jsonl, benchmarks.jsonl and starts.jsonl; no starts for a run of an older version.
    """

    run: RunFolder
    steps: Sequence[StepMetrics]
    validations: Sequence[Validation]
    samples: Sequence[Sample]
    benchmarks: Sequence[BenchmarkScores]
    starts: Sequence[RunStart]


def read_run_history(run_dir: Path) -> RunHistory:
    """Read a run; it may be unfinished, running or killed. Raises UserError if it has no step."""
    run = read_run_folder(run_dir)
    steps = results_of(run_dir / METRICS_FILE, StepMetrics.from_json)
    if not steps:
        raise UserError(run_dir, f"no step is written yet ({METRICS_FILE} is empty or missing)", "train first")
    return RunHistory(
        run=run,
        steps=steps,
        validations=results_of(run_dir / VALIDATION_FILE, Validation.from_json),
        samples=results_of(run_dir / SAMPLES_FILE, Sample.from_json),
        benchmarks=results_of(run_dir / BENCHMARKS_FILE, BenchmarkScores.from_json),
        starts=results_of(run_dir / STARTS_FILE, RunStart.from_json),
    )
