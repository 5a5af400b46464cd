"""Weights & Biases, online or as an offline run in the run folder."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
import uuid
from pathlib import Path
from typing import Any

from ochat_train.evaluation.results import ValidationResult
from ochat_train.recipe.sections import TrackingSettings
from ochat_train.report.tables import learnt_text, matrix_columns, shown_condition
from ochat_train.runs.metrics import StepMetrics
from ochat_train.system.durable import replace_text
from ochat_train.tracking.protocol import RunFacts
from ochat_train.tracking.scalars import step_scalars, validation_scalars

EXIT_SECONDS = 5.0  # what wandb may take of the end of the process after it has failed or been left behind
RUN_FILE = "wandb.json"  # which run it is, and up to which step it surely has everything


class WandbTracker:
    """One run of Weights & Biases for one run folder, over all of its restarts.

    A step can be logged there only once and in order: what a resumed run does again stays as it was logged first. After
    the process was killed nobody knows what was written of the last steps, so those that are done again are logged
    again: online the library leaves out what the server has, offline the later part of the run may repeat some.
    """

    name = "Weights & Biases"

    def __init__(self, settings: TrackingSettings) -> None:
        self._settings = settings
        self._step = 0  # the last one that was logged

    def start(self, facts: RunFacts) -> str:
        """See Tracker."""
        import wandb

        settings = wandb.Settings(
            silent=True,
            console="off",  # the progress line is ours, and the log stays readable
            # command line, environment, git remote: they may hold secrets; `hardware` and `versions` say what matters
            disable_git=True,
            disable_code=True,
            save_code=False,
            x_disable_meta=True,
            x_save_requirements=False,
        )
        wandb.setup(settings)
        is_offline = self._settings.wandb == "offline"
        if not is_offline and not wandb.login(prompt=False, verify=False):
            raise PermissionError("no API key: run `wandb login`, or set WANDB_API_KEY")
        self._conditions = {row["name"]: row["condition"] for row in facts.classes}
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
                "classes": {row["name"]: row for row in facts.classes},
                "ledger": facts.ledger,
                "hardware": facts.hardware,
                "versions": facts.versions,
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
        if steps:
            self._log(shown, steps[0])

    def close(self, *, done: bool) -> None:
        """See Tracker."""
        self._run.finish(exit_code=0 if done else 1)
        self._note(max(self._step, self._logged_step))  # not earlier: wandb keeps the newest rows in memory for a while

    def abandon(self) -> None:
        """See Tracker."""
        threading.Thread(target=_end_service_at_exit, name="end of wandb", daemon=True).start()

    def _log(self, values: dict[str, Any], step: int) -> None:
        if step > self._logged_step:
            self._step = step
            self._run.log(values, step=step)

    def _note(self, step: int) -> None:
        replace_text(self._file, json.dumps({"id": self._id, "logged_step": step}) + "\n")


def _earlier_part(file: Path) -> tuple[str, int]:
    """Id of the run as it was before, and the last step that it surely has; a new id where it was not tracked."""
    if not file.is_file():
        return uuid.uuid4().hex, 0
    noted = json.loads(file.read_text(encoding="utf-8"))
    return noted["id"], noted["logged_step"]


def _end_service_at_exit() -> None:
    """When the process ends, wandb tells its service process to end and waits for it, without a limit: give it one."""
    threading.main_thread().join()
    time.sleep(EXIT_SECONDS)
    for child in _children(os.getpid()):
        with contextlib.suppress(OSError):
            if b"wandb-core" in Path(f"/proc/{child}/cmdline").read_bytes():
                os.kill(child, signal.SIGKILL)


def _children(process: int) -> list[int]:
    """Process numbers of the children of all threads."""
    files = Path(f"/proc/{process}/task").glob("*/children")
    return [int(child) for file in files for child in file.read_text(encoding="utf-8").split()]
