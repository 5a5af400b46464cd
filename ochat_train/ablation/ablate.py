"""`ochat ablate`: prepares, trains and scores every arm and seed, and writes the comparison."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from data_pipeline.errors import UserError
from data_pipeline.prepared.dataset import Manifest, PreparedSplit
from ochat_train.ablation.arms import REFERENCE, Arm, arm_recipe, arms_of
from ochat_train.ablation.results import AblationResults, ArmResult, ArmScore
from ochat_train.ablation.results_page import ablation_page, results_picture
from ochat_train.ablation.results_table import results_text
from ochat_train.ablation.trainings import Exam, TrainingJob, run_trainings
from ochat_train.evaluation.questions import load_questions
from ochat_train.planning.steps import peak_learning_rate, training_plan
from ochat_train.recipe.preparation import prepare_recipe
from ochat_train.recipe.recipe import Recipe
from ochat_train.report.pictures import as_file
from ochat_train.suites.benchmarks import load_benchmarks
from ochat_train.system.durable import replace_text

_RECIPE_FILE = "recipe.json"


@dataclass(frozen=True, kw_only=True)
class Options:
    """How an ablation is run. gpus: of one training (processes, without a GPU). parallel: trainings at the same time.

    only: names of arms; empty: all of them.
    """

    folder: Path
    num_seeds: int
    gpus: int
    parallel: int
    only: Sequence[str]
    keep_checkpoints: bool


def ablate(
    recipe: Recipe, options: Options, *, say: Callable[[str], None], warn: Callable[[str], None]
) -> AblationResults:
    """Run what is missing, and write and return the results.

    say: for progress. warn: for what went wrong with a training.

    Raises UserError for a recipe that cannot be ablated, for a folder with another recipe's ablation, and if a training
    or scoring fails (the others are finished first, and kept); StoppedBySignalError after Ctrl-C, or SIGTERM to a
    training.
    """
    if not recipe.data.validation_ratio:
        raise UserError(
            "data.validation_ratio", "0 holds nothing out to score the arms on", "set it, for example to 0.02"
        )
    questions = Path(recipe.validation.questions) if recipe.validation.questions else None
    if questions:
        load_questions(questions)  # a wrong line costs a second now, not a training
    if recipe.validation.benchmarks and recipe.data.classes:
        load_benchmarks(recipe.validation, conditions=[spec.condition for spec in recipe.data.classes.values()])
    _claim(options.folder, recipe)
    manifest, _ = prepare_recipe(recipe, num_workers=None, progress=lambda rows: None)
    arms = _chosen_arms(recipe, manifest, only=options.only)
    jobs = list(_jobs(recipe, manifest, arms, options))
    num_failed = run_trainings(
        jobs,
        Exam(
            prepared_dir=Path(recipe.data.prepared_dir),
            questions=questions,
            recipe_file=options.folder / _RECIPE_FILE if recipe.validation.benchmarks else None,
        ),
        gpus=options.gpus,
        parallel=options.parallel,
        keep_checkpoints=options.keep_checkpoints,
        say=say,
        warn=warn,
    )
    if num_failed:
        raise UserError(
            options.folder,
            f"{num_failed} of {len(jobs)} trainings failed",
            "repair the cause and run the command again; the others are kept",
        )
    results = _results(recipe, manifest, arms, jobs, options)
    _write(results, options.folder)
    return results


def _claim(folder: Path, recipe: Recipe) -> None:
    """Keep two recipes out of one folder: finished arms of another recipe would be taken for this one's."""
    folder.mkdir(parents=True, exist_ok=True)
    values = recipe.model_dump(mode="json", by_alias=True, exclude={"output_dir"})
    path, text = folder / _RECIPE_FILE, json.dumps(values, indent=1, ensure_ascii=False) + "\n"
    if path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))
        with contextlib.suppress(ValueError):  # keys that are newer than the ablation get their default values
            whole = Recipe.model_validate({**before, "output_dir": recipe.output_dir})
            before = whole.model_dump(mode="json", by_alias=True, exclude={"output_dir"})
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


def _chosen_arms(recipe: Recipe, manifest: Manifest, *, only: Sequence[str]) -> list[Arm]:
    if len(manifest.conditions) < 2:
        raise UserError("data.classes", "all classes have one condition, so there is nothing to ablate")
    arms = {arm.name: arm for arm in arms_of(recipe, inference_condition=manifest.inference_condition)}
    if unknown := set(only) - arms.keys():
        raise UserError("--arms", f"unknown {', '.join(sorted(unknown))}", f"arms: {', '.join(arms)}")
    return [arm for arm in arms.values() if not only or arm.name in only]


def _jobs(recipe: Recipe, manifest: Manifest, arms: Sequence[Arm], options: Options) -> Iterator[TrainingJob]:
    """All arms and seeds. Each takes as many steps as C-RLFT with the recipe's seed, over as many epochs as needed."""
    max_steps = training_plan(recipe, PreparedSplit(Path(recipe.data.prepared_dir), "train")).num_steps
    learning_rate = peak_learning_rate(recipe, manifest).value
    for arm in arms:

        def recipe_of(seed: int, *, epochs: int, arm: Arm = arm) -> Recipe:
            return arm_recipe(
                recipe,
                arm,
                folder=options.folder,
                seed=seed,
                max_steps=max_steps,
                epochs=epochs,
                learning_rate=learning_rate,
            )

        first = recipe_of(recipe.seed, epochs=1)
        prepare_recipe(first, num_workers=None, progress=lambda rows: None)
        tokens = int(PreparedSplit(Path(first.data.prepared_dir), "train").num_tokens.sum())
        epochs = 1 + -(-max_steps * recipe.train.tokens_per_step // tokens)
        for seed in range(recipe.seed, recipe.seed + options.num_seeds):
            yield TrainingJob(arm=arm, seed=seed, recipe=recipe_of(seed, epochs=epochs))


def _results(
    recipe: Recipe, manifest: Manifest, arms: Sequence[Arm], jobs: Sequence[TrainingJob], options: Options
) -> AblationResults:
    num_steps = jobs[0].recipe.train.max_steps
    assert num_steps is not None, "set by _jobs"
    results = {}
    for arm in arms:
        prepared = Manifest.load(options.folder / arm.name / "prepared")
        assert prepared is not None, "prepared by _jobs"
        split = prepared.splits["train"]
        scores = {job.seed: _read_score(job.score_file) for job in jobs if job.arm.name == arm.name}
        if len(prepared.conditions) < 2:  # an older score.json has verdicts also of such arms
            scores = {
                seed: replace(score, evaluation=score.evaluation.without_verdicts()) for seed, score in scores.items()
            }
        results[arm.name] = ArmResult(
            title=arm.title,
            conversations=split.conversations,
            epochs=num_steps * recipe.train.tokens_per_step / split.tokens,
            scores=scores,
        )
    return AblationResults(
        recipe=recipe.name,
        steps=num_steps,
        seeds=options.num_seeds,
        reference=REFERENCE,
        inference_class=next(row.name for row in manifest.classes if row.condition == manifest.inference_condition),
        inference_condition=manifest.inference_condition,
        arms=results,
    )


def _read_score(path: Path) -> ArmScore:
    return ArmScore.from_json(json.loads(path.read_text(encoding="utf-8")))


def _write(results: AblationResults, folder: Path) -> None:
    replace_text(folder / "results.json", json.dumps(results.to_json(), indent=1) + "\n")
    replace_text(folder / "results.txt", results_text(results) + "\n")
    if (picture := results_picture(results)) is not None:
        replace_text(folder / "results.svg", as_file(picture))
    replace_text(folder / "results.html", ablation_page(results))
