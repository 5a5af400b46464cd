"""Trains and scores arms in separate processes, several at a time; finished ones are not run again."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import IO

import torch
import yaml

from data_pipeline.errors import UserError
from ochat_train.ablation.arms import Arm
from ochat_train.checkpoint.state import checkpoints_dir
from ochat_train.distributed.launch import free_port, without_launcher
from ochat_train.recipe.recipe import Recipe
from ochat_train.report.progress_line import duration_text
from ochat_train.system.durable import replace_text
from ochat_train.system.exits import STOPPED, StoppedBySignalError

SCORE_FILE = "score.json"
_TAIL_CHARACTERS = 2000
_STOPPED = "stopped by a signal; finished trainings are kept, run the command again to continue"


@dataclass(frozen=True, kw_only=True)
class TrainingJob:
    """One arm with one seed. run_dir: the `output_dir` of its recipe."""

    arm: Arm
    seed: int
    recipe: Recipe

    @property
    def run_dir(self) -> Path:
        """The run folder."""
        return Path(self.recipe.output_dir)

    @property
    def score_file(self) -> Path:
        """Where its score is; there is none before it is finished."""
        return self.run_dir / SCORE_FILE


@dataclass(frozen=True, kw_only=True)
class Exam:
    """What every arm is scored on: held-out conversations of a prepared dataset, and questions if there are any.

    recipe_file: recipe.json of the ablation, for `validation.benchmarks`; None without any.
    """

    prepared_dir: Path
    questions: Path | None
    recipe_file: Path | None = None


def run_trainings(
    jobs: Sequence[TrainingJob],
    exam: Exam,
    *,
    gpus: int,
    parallel: int,
    keep_checkpoints: bool,
    say: Callable[[str], None],
    warn: Callable[[str], None],
) -> int:
    """Train and score the jobs that are not finished; returns how many of them failed, after all others have ended.

    gpus: of one training (processes, without a GPU). parallel: trainings at the same time. say: for progress. warn: for
    what went wrong. Raises StoppedBySignalError after Ctrl-C, or a signal to a training, once the trainings
    that run have written their checkpoints.
    """
    places: SimpleQueue[int] = SimpleQueue()
    for place in range(parallel):
        places.put(place)
    # seed by seed, so that an ablation that is interrupted has something of every arm
    missing = [job for job in sorted(jobs, key=lambda job: job.seed) if not job.score_file.is_file()]
    num_finished = len(jobs) - len(missing)
    say(f"{len(jobs)} trainings of {jobs[0].recipe.train.max_steps:,} steps, {num_finished} finished already")

    began, ended, commands = time.monotonic(), list[TrainingJob](), _Commands()

    def work(job: TrainingJob) -> str | None:
        place = places.get()
        try:
            start = time.monotonic()
            problem = _train_and_score(job, exam, commands, place=place, gpus=gpus, keep_checkpoints=keep_checkpoints)
            said = problem or f"done in {time.monotonic() - start:.0f} s"
            ended.append(job)
            (warn if problem else say)(
                f"{job.arm.name}, seed {job.seed}: {said}{_left_text(began, len(ended), len(missing))}"
            )
            return problem
        finally:
            places.put(place)

    with ThreadPoolExecutor(parallel) as pool:
        try:
            return sum(problem is not None for problem in pool.map(work, missing))
        except (KeyboardInterrupt, StoppedBySignalError):
            commands.stop()
            raise StoppedBySignalError(_STOPPED) from None


class _Commands:
    """Runs commands out of reach of the terminal's signals, so that each hears once, from here, that it is to stop: a
    launcher that hears it twice ends its ranks before they have written a checkpoint.
    """

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[bytes]] = set()
        self._is_stopping, self._lock = False, threading.Lock()

    def run(self, command: Sequence[str], *, environment: Mapping[str, str], output: IO[str]) -> int:
        """The exit code. Raises StoppedBySignalError after `stop`, or where a signal ended a training."""
        with self._lock:
            if self._is_stopping:
                raise StoppedBySignalError(_STOPPED)
            process = subprocess.Popen(
                command, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
            self._running.add(process)
        code = process.wait()
        with self._lock:
            self._running.discard(process)
            if self._is_stopping or code == STOPPED:
                raise StoppedBySignalError(_STOPPED)
        return code

    def stop(self) -> None:
        """Ask all that run to stop, and let no other begin."""
        with self._lock:
            self._is_stopping = True
            for process in self._running:
                process.send_signal(signal.SIGINT)


def _left_text(began: float, num_ended: int, num_jobs: int) -> str:
    """How long the others take at the pace so far; the first one that ends gives the first estimate."""
    seconds = (time.monotonic() - began) / num_ended * (num_jobs - num_ended)
    return f"; {num_jobs - num_ended} left, about {duration_text(seconds)}" if num_ended < num_jobs else ""


def _train_and_score(
    job: TrainingJob, exam: Exam, commands: _Commands, *, place: int, gpus: int, keep_checkpoints: bool
) -> str | None:
    """What went wrong, None if nothing."""
    recipe_file, log = job.run_dir.with_suffix(".yaml"), job.run_dir.with_suffix(".log")
    values = job.recipe.model_dump(mode="json", by_alias=True, exclude_none=True)
    replace_text(recipe_file, yaml.safe_dump(values, sort_keys=False, allow_unicode=True))
    environment = arm_environment(place, gpus)
    with log.open("w", encoding="utf-8") as output:
        for command in (_train_command(recipe_file, gpus), _score_command(job, exam)):
            if code := commands.run(command, environment=environment, output=output):
                tail = log.read_text(encoding="utf-8", errors="replace")[-_TAIL_CHARACTERS:]
                return f"ended with exit code {code}, see {log}:\n{tail}"
    if not keep_checkpoints:
        shutil.rmtree(checkpoints_dir(job.run_dir))
    return None


def _train_command(recipe_file: Path, gpus: int) -> list[str]:
    if gpus == 1:
        return [sys.executable, "-m", "ochat_train", str(recipe_file)]
    launcher = [sys.executable, "-m", "torch.distributed.run"]
    return [
        *launcher,
        "--nproc-per-node",
        str(gpus),
        "--master-port",
        str(free_port()),
        "-m",
        "ochat_train",
        str(recipe_file),
    ]


def _score_command(job: TrainingJob, exam: Exam) -> list[str]:
    arguments = [job.run_dir, exam.prepared_dir, job.score_file]
    if exam.questions is not None:
        arguments.append(exam.questions)
    if exam.recipe_file is not None:
        arguments += [Path("--benchmarks"), exam.recipe_file]
    return [sys.executable, "-m", "ochat_train.ablation.score", *map(str, arguments)]


def arm_environment(place: int, gpus: int) -> dict[str, str]:
    """The environment of a training at one of several places: its GPUs, without the variables of this launcher.

    Places share GPUs if there are more places than GPUs.
    """
    available = torch.cuda.device_count()
    environment = without_launcher(os.environ)
    if available:
        if gpus > available:
            raise UserError(f"--gpus {gpus}", f"this host has {available}", "use at most as many")
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(available)))).split(",")
        chosen = [visible[(place * gpus + number) % available] for number in range(gpus)]
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(chosen)
    return environment
