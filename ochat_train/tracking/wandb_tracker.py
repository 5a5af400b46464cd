"""Weights & Biases, online or as an offline run in the run folder."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import threading
import uuid
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ochat_train.evaluation.results import ValidationResult
from ochat_train.recipe.sections.tracking import TrackingSettings
from ochat_train.report.tables import learnt_text, matrix_columns, shown_condition
from ochat_train.runs.metrics import StepMetrics
from ochat_train.system.durable import replace_text
from ochat_train.tracking.kind import TrackerKind
from ochat_train.tracking.protocol import RunFacts
from ochat_train.tracking.scalars import benchmark_scalars, step_scalars, validation_scalars

RUN_FILE = "wandb.json"  # which run it is, and up to which step it certainly has everything
_FINISH_SECONDS = 60.0  # wandb's service gives up uploading this long after the end; delivery.py waits for half of it


class WandbTracker:
    """One run of Weights & Biases for one run folder, over all of its restarts.

    A step can be logged there only once and in order: steps that a resumed run repeats keep their first values. After
    the process was killed it is unknown which of the last steps were written, so repeated steps are logged again:
    online the library skips what the server has, offline the later part of the run may repeat some.

    exit_seconds: how long the end of the process may wait for wandb after it has failed or was dropped.
    """

    name = "Weights & Biases"

    def __init__(self, settings: TrackingSettings, *, exit_seconds: float = 5.0) -> None:
        self._settings, self._exit_seconds = settings, exit_seconds
        self._step = 0  # the last one that was logged

    def start(self, facts: RunFacts) -> str:
        """See Tracker."""
        # Reports of wandb's own errors go to its makers, and wait 10 s for an answer at the end of the process.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        settings = wandb.Settings(
            silent=True,
            console="off",  # the progress line is ours, and the log stays readable
            # command line, environment, git remote: they may contain secrets; see `hardware` and `versions`
            disable_git=True,
            disable_code=True,
            save_code=False,
            x_disable_meta=True,
            x_save_requirements=False,
            finish_timeout=_FINISH_SECONDS,
            finish_timeout_raises=True,  # a run that is not uploaded is not logged
        )
        wandb.setup(settings)
        is_offline = self._settings.wandb == "offline"
        if not is_offline and not wandb.login(prompt=False, verify=False):
            raise PermissionError("no API key: run `wandb login`, or set WANDB_API_KEY")
        self._conditions = {row.name: row.condition for row in facts.classes}
        self._file = facts.output_dir / RUN_FILE
        self._id, self._logged_step = _earlier_part(self._file) if facts.first_step else (uuid.uuid4().hex, 0)
        self._run = wandb.init(
            mode="offline" if is_offline else "online",
            id=self._id,
            resume=None if is_offline else "allow",
            project=self._settings.wandb_project,
            entity=self._settings.wandb_entity,
            group=self._settings.wandb_group,
            tags=self._settings.wandb_tags,
            name=facts.name,
            dir=str(facts.output_dir),
            allow_val_change=True,
            config={
                **facts.recipe,
                "classes": {row.name: asdict(row) for row in facts.classes},
                "ledger": asdict(facts.ledger),
                "hardware": dict(facts.hardware),
                "versions": dict(facts.versions),
            },
            settings=settings,
        )
        self._note(self._logged_step)
        if is_offline:
            return f"offline, upload with `wandb sync {Path(self._run.dir).parent}`"
        return str(self._run.url)

    def log_step(self, metrics: StepMetrics) -> None:
        """See Tracker."""
        self._log(step_scalars(metrics), metrics.step)

    def log_validation(self, result: ValidationResult) -> None:
        """See Tracker."""
        import wandb

        shown: dict[str, Any] = {}
        steps = [sample.step for sample in result.samples]
        if (validation := result.validation) is not None:
            steps = [validation.step]
            shown |= validation_scalars(validation)
            if (matrix := validation.evaluation.matrix).nll:
                from ochat_train.report.pictures import heat_map

                columns = ["class", *matrix_columns(matrix.conditions)]
                rows = [[name, *row, learnt_text(matrix.learnt.get(name))] for name, row in matrix.nll.items()]
                shown["condition_matrix/table"] = wandb.Table(columns=columns, data=rows)
                picture = heat_map(matrix.nll, matrix.conditions, self._conditions)
                shown["condition_matrix/picture"] = wandb.Image(picture)
        if result.samples:
            columns = ["step", "prompt", "condition", "answer", "finished"]
            rows = [
                [sample.step, sample.prompt, shown_condition(answer.condition), answer.text, answer.finished]
                for sample in result.samples
                for answer in sample.answers
            ]
            shown["samples"] = wandb.Table(columns=columns, data=rows)
        if (benchmarks := result.benchmarks) is not None:
            steps.append(benchmarks.step)
            shown |= benchmark_scalars(benchmarks)
        if steps:
            self._log(shown, steps[0])

    def close(self, *, done: bool) -> None:
        """See Tracker."""
        self._run.finish(exit_code=0 if done else 1)
        self._note(max(self._step, self._logged_step))  # not earlier: wandb keeps the newest rows in memory

    def abandon(self) -> None:
        """See Tracker.

        When the process ends, a hook of wandb waits for its service process without a limit. `wandb.teardown` removes
        that hook and waits itself, here in a thread that does not hold the process. Our hook runs first (the last one
        that is registered does) and gives it a moment. A service that still uploads then ends by itself.
        """
        ending = threading.Thread(target=_tear_down, name="end of wandb", daemon=True)
        ending.start()
        atexit.register(ending.join, self._exit_seconds)

    def _log(self, values: dict[str, Any], step: int) -> None:
        if step > self._logged_step:
            self._step = step
            self._run.log(values, step=step)

    def _note(self, step: int) -> None:
        replace_text(self._file, json.dumps({"id": self._id, "logged_step": step}) + "\n")


def _earlier_part(file: Path) -> tuple[str, int]:
    """Id of the run, and the last step that it certainly has; a new id if it was not tracked before."""
    if not file.is_file():
        return uuid.uuid4().hex, 0
    noted = json.loads(file.read_text(encoding="utf-8"))
    return noted["id"], noted["logged_step"]


def _tear_down() -> None:
    with contextlib.suppress(Exception):  # it was failing already, and that was reported
        import wandb

        wandb.teardown(exit_code=1)


WANDB = TrackerKind(
    key="wandb",
    package="wandb",
    extra="tracking",
    is_wanted=lambda settings: bool(settings.wandb),
    make=WandbTracker,
)
