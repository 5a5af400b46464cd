"""The history of a run, read back from its folder: steps, validations, samples."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline.errors import UserError
from ochat_train.runs.folder import RunFolder, read_run_folder
from ochat_train.runs.lines import METRICS_FILE, SAMPLES_FILE, VALIDATION_FILE, rows_of


@dataclass(frozen=True, kw_only=True)
class RunHistory:
    """A run so far. steps, validations, samples: the rows of metrics.jsonl, validation.jsonl and samples.jsonl."""

    run: RunFolder
    steps: list[dict[str, Any]]
    validations: list[dict[str, Any]]
    samples: list[dict[str, Any]]


def read_run_history(run_dir: Path) -> RunHistory:
    """Read a run; it may be unfinished, running or killed. Raises UserError if it has no step."""
    run = read_run_folder(run_dir)
    steps, validations, samples = (rows_of(run_dir / name) for name in (METRICS_FILE, VALIDATION_FILE, SAMPLES_FILE))
    if not steps:
        raise UserError(run_dir, f"no step is written yet ({METRICS_FILE} is empty or missing)", "train first")
    return RunHistory(run=run, steps=steps, validations=validations, samples=samples)
