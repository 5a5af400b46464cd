"""Trains and scores every arm and seed of an ablation; what is finished is not run again."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import torch
import yaml

from data_pipeline.errors import UserError
from data_pipeline.prepared.dataset import Manifest, PreparedSplit
from ochat_train.ablation.arms import REFERENCE, Arm, arm_recipe, arms_of, run_dir
from ochat_train.ablation.page import ablation_page, results_picture
from ochat_train.ablation.table import results_text
from ochat_train.checkpoint.state import checkpoints_dir
from ochat_train.distributed.launch import free_port, without_launcher
from ochat_train.evaluation.questions import load_questions
from ochat_train.planning.steps import peak_learning_rate, training_plan
from ochat_train.recipe.preparation import prepare_recipe
from ochat_train.recipe.sections import Recipe
from ochat_train.report.pictures import as_file
from ochat_train.system.durable import replace_text
from ochat_train.system.exits import STOPPED, StoppedBySignalError

SCORE_FILE = "score.json"
_TAIL_CHARACTERS = 2000
_STOPPED = "stopped by a signal; finished trainings are kept, start again to go on"


@dataclass(frozen=True, kw_only=True)
class Options:
    """How an ablation is run. gpus: of one training (processes, without a GPU). parallel: trainings at the same
    time.
    """

    folder: Path
    num_seeds: int
    gpus: int
    parallel: int
    only: Sequence[str]
    keep_checkpoints: bool


@dataclass(frozen=True, kw_only=True)
class TrainingJob:
    """One arm with one seed."""

    arm: Arm
    seed: int
    recipe: Recipe


def ablate(recipe: Recipe, options: Options, *, say: Callable[[str], None]) -> dict[str, Any]:
    """Run what is missing; returns the document of results.json.

    Raises UserError for a recipe that cannot be ablated, for a folder with another recipe's ablation, and if a training
    or scoring fails (the others are finished first, and kept); StoppedBySignalError after Ctrl-C or SIGTERM to a
    training.
    """
    if not recipe.data.validation_ratio:
        raise UserError(
            "data.validation_ratio", "0 holds nothing out to score the arms on", "set it, for example to 0.02"
        )
    questions = Path(recipe.validation.questions) if recipe.validation.questions else None
    if questions:
        load_questions(questions)  # a wrong line costs a second now, not a training
    _claim(options.folder, recipe)
    manifest, _ = prepare_recipe(recipe, num_workers=None, progress=lambda rows: None)
    if len(manifest.conditions) < 2:
        raise UserError("data.classes", "all classes have one condition, so there is nothing to ablate")
    arms = arms_of(recipe, inference_condition=manifest.inference_condition)
    if unknown := set(options.only) - {arm.name for arm in arms}:
        raise UserError(
            "--arms", f"unknown {', '.join(sorted(unknown))}", f"arms: {', '.join(arm.name for arm in arms)}"
        )
    if options.only:
        arms = [arm for arm in arms if arm.name in options.only]
    jobs = list(_jobs(recipe, manifest, arms, options))
    _run_jobs(jobs, Path(recipe.data.prepared_dir), questions, options, say)
    results = _results(recipe, manifest, arms, jobs, options)
    replace_text(options.folder / "results.json", json.dumps(results, indent=1) + "\n")
    replace_text(options.folder / "results.txt", results_text(results) + "\n")
    replace_text(options.folder / "results.svg", as_file(results_picture(results)))
    replace_text(options.folder / "results.html", ablation_page(results))
    return results


def _claim(folder: Path, recipe: Recipe) -> None:
    """Keep two recipes out of one folder: finished arms of another recipe would be taken for this one's."""
    folder.mkdir(parents=True, exist_ok=True)
    values = recipe.model_dump(mode="json", by_alias=True, exclude={"output_dir"})
    path, text = folder / "recipe.json", json.dumps(values, indent=1, ensure_ascii=False) + "\n"
    if path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))
        changed = [section for section in values if before.get(section) != values[section]]
        if changed:
            raise UserError(
                folder,
                f"holds the ablation of a recipe with another {', '.join(changed)}",
                "choose another --out, or remove it",
            )
    elif any(folder.iterdir()):
        raise UserError(folder, "holds files that are not an ablation's", "choose another --out")
    replace_text(path, text)


def _jobs(recipe: Recipe, manifest: Manifest, arms: Sequence[Arm], options: Options) -> Iterator[TrainingJob]:
    """All arms and seeds: each takes as many steps as C-RLFT does with the recipe's seed, going over its data as often
    as that needs.
    """
    max_steps = training_plan(recipe, PreparedSplit(Path(recipe.data.prepared_dir), "train")).num_steps
    learning_rate = peak_learning_rate(recipe, manifest)
    for arm in arms:
        first = arm_recipe(
            recipe,
            arm,
            folder=options.folder,
            seed=recipe.seed,
            max_steps=max_steps,
            epochs=1,
            learning_rate=learning_rate,
        )
        prepare_recipe(first, num_workers=None, progress=lambda rows: None)
        tokens = int(PreparedSplit(Path(first.data.prepared_dir), "train").num_tokens.sum())
        epochs = 1 + -(-max_steps * recipe.train.tokens_per_step // tokens)
        for seed in range(recipe.seed, recipe.seed + options.num_seeds):
            changed = arm_recipe(
                recipe,
                arm,
                folder=options.folder,
                seed=seed,
                max_steps=max_steps,
                epochs=epochs,
                learning_rate=learning_rate,
            )
            yield TrainingJob(arm=arm, seed=seed, recipe=changed)


def _run_jobs(
    jobs: Sequence[TrainingJob], reference: Path, questions: Path | None, options: Options, say: Callable[[str], None]
) -> None:
    places: SimpleQueue[int] = SimpleQueue()
    for place in range(options.parallel):
        places.put(place)
    # the seeds of an arm apart from each other, so that an ablation that is cut off has something of every arm
    ordered = sorted(jobs, key=lambda job: job.seed)
    missing = [job for job in ordered if not _score_file(options, job).is_file()]
    say(
        f"{len(jobs)} trainings of {jobs[0].recipe.train.max_steps:,} steps, {len(jobs) - len(missing)} finished "
        "already"
    )

    def work(job: TrainingJob) -> str | None:
        place = places.get()
        try:
            start = time.monotonic()
            problem = _train_and_score(job, place, reference, questions, options)
            say(f"{job.arm.name}, seed {job.seed}: {problem or f'done in {time.monotonic() - start:.0f} s'}")
            return problem
        finally:
            places.put(place)

    with ThreadPoolExecutor(options.parallel) as pool:
        try:  # an error here leaves out what has not begun; what is running has got the signal, too, and is waited for
            problems = [problem for problem in pool.map(work, missing) if problem]
        except KeyboardInterrupt:
            raise StoppedBySignalError(_STOPPED) from None
    if problems:
        raise UserError(
            f"{len(problems)} of {len(missing)} trainings failed; mend the cause and start again, the others are kept"
        )


def _train_and_score(
    job: TrainingJob, place: int, reference: Path, questions: Path | None, options: Options
) -> str | None:
    """What went wrong, None if nothing."""
    run = run_dir(options.folder, job.arm.name, job.seed)
    recipe_file = run.with_suffix(".yaml")
    values = job.recipe.model_dump(mode="json", by_alias=True, exclude_none=True)
    replace_text(recipe_file, yaml.safe_dump(values, sort_keys=False, allow_unicode=True))
    log = run.with_suffix(".log")
    environment = arm_environment(place, options.gpus)
    score = [
        sys.executable,
        "-m",
        "ochat_train.ablation.score",
        str(run),
        str(reference),
        str(_score_file(options, job)),
    ]
    commands = [_launch(recipe_file, options.gpus), score + ([str(questions)] if questions else [])]
    with log.open("w", encoding="utf-8") as output:
        for command in commands:
            code = subprocess.run(
                command, env=environment, stdout=output, stderr=subprocess.STDOUT, check=False
            ).returncode
            if code == STOPPED:
                raise StoppedBySignalError(_STOPPED)
            if code:
                output.flush()
                tail = log.read_text(encoding="utf-8", errors="replace")[-_TAIL_CHARACTERS:]
                return f"ended with exit code {code}, see {log}:\n{tail}"
    if not options.keep_checkpoints:
        shutil.rmtree(checkpoints_dir(run))
    return None


def _launch(recipe_file: Path, gpus: int) -> list[str]:
    if gpus == 1:
        return [sys.executable, "-m", "ochat_train", str(recipe_file)]
    return [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        str(gpus),
        "--master-port",
        str(free_port()),
        "-m",
        "ochat_train",
        str(recipe_file),
    ]


def arm_environment(place: int, gpus: int) -> dict[str, str]:
    """The environment of a training at one of several places: its GPUs, and nothing of this process's launcher.

    Places share GPUs if there are more places than GPUs.
    """
    available = torch.cuda.device_count()
    environment = without_launcher(os.environ)
    if available:
        if gpus > available:
            raise UserError(f"--gpus {gpus}", f"this host has {available}")
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(available)))).split(",")
        chosen = [visible[(place * gpus + number) % available] for number in range(gpus)]
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(chosen)
    return environment


def _score_file(options: Options, job: TrainingJob) -> Path:
    return run_dir(options.folder, job.arm.name, job.seed) / SCORE_FILE


def _results(
    recipe: Recipe, manifest: Manifest, arms: Sequence[Arm], jobs: Sequence[TrainingJob], options: Options
) -> dict[str, Any]:
    inference = next(row.name for row in manifest.classes if row.condition == manifest.inference_condition)
    scores: dict[str, dict[str, Any]] = {arm.name: {} for arm in arms}
    for job in jobs:
        scores[job.arm.name][str(job.seed)] = json.loads(_score_file(options, job).read_text(encoding="utf-8"))
    facts = {}
    for arm in arms:
        prepared = Manifest.load(options.folder / arm.name / "prepared")
        assert prepared is not None, "prepared above"
        split = prepared.splits["train"]
        max_steps = jobs[0].recipe.train.max_steps
        assert max_steps is not None, "set by _jobs"
        facts[arm.name] = {
            "title": arm.title,
            "conversations": split["conversations"],
            "epochs": max_steps * recipe.train.tokens_per_step / split["tokens"],
        }
    return {
        "recipe": recipe.name,
        "steps": jobs[0].recipe.train.max_steps,
        "seeds": options.num_seeds,
        "reference": REFERENCE,
        "inference_class": inference,
        "inference_condition": manifest.inference_condition,
        "arms": {name: {**facts[name], "scores": scores[name]} for name in scores},
    }
