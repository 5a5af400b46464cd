"""The arms of the ablation: what is left out of C-RLFT in each, as recipes that differ in nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline.class_names import file_names, short_file_name
from data_pipeline.errors import UserError
from data_pipeline.path_keys import written_path
from ochat_train.recipe.recipe import Recipe

REFERENCE = "c-rlft"
_RUN_CHARACTERS = 64  # of the name of a run
_ARM_CHARACTERS = 30


@dataclass(frozen=True, kw_only=True)
class Arm:
    """An arm. name: of its folder and its runs. title: for people. data: the `data` section of its recipe, without
    `prepared_dir`.
    """

    name: str
    title: str
    data: Mapping[str, Any]


def arms_of(recipe: Recipe, *, inference_condition: str) -> list[Arm]:
    """All arms of a recipe, C-RLFT first (arXiv 2309.11235, section 4.3, and one arm for each class alone).

    Arms without conditions prompt every class with `inference_condition`, and so do the arms of a single class. Arms
    without weights give every class weight 1.
    Raises UserError for a recipe whose classes come from its rows.
    """
    data = recipe.data.model_dump(mode="json", by_alias=True, exclude_none=True)
    if not recipe.data.classes:
        raise UserError(
            "data.classes",
            "the ablation changes conditions and weights of classes, so the recipe must name them (not `classes_from`)",
            "for OpenChat's own rows give the classes, and `class_field: condition` to the source",
        )

    def arm(name: str, title: str, *, conditions: bool, weights: bool, **more: Any) -> Arm:
        changed = _arm_data(data, inference_condition, conditions=conditions, weights=weights)
        return Arm(name=name, title=title, data={**changed, **more})

    both = [
        arm(REFERENCE, "C-RLFT", conditions=True, weights=True),
        arm("condition-only", "conditions only (all weights 1)", conditions=True, weights=False),
        arm("weights-only", "weights only (one condition)", conditions=False, weights=True),
        arm("sft", "plain SFT", conditions=False, weights=False),
    ]
    taken = [entry.name.removesuffix("-only") for entry in both]  # a class may be called `weights`
    alone = [
        arm(f"{file}-only", f"{name} only", conditions=False, weights=False, only_classes=[name])
        for name, file in file_names(recipe.data.classes, taken=taken).items()
    ]
    return both + alone


def _arm_data(data: Mapping[str, Any], inference_condition: str, *, conditions: bool, weights: bool) -> dict[str, Any]:
    """The `data` section of an arm. conditions, weights: whether it keeps those of the recipe."""
    classes = {}
    for name, spec in data["classes"].items():
        condition = spec["condition"] if conditions else inference_condition
        classes[name] = {**spec, "condition": condition} if weights else {"condition": condition, "weight": 1.0}
    changed = {**data, "classes": classes}
    if not weights:
        changed = {key: value for key, value in changed.items() if key not in ("beta", "reward_clip")}
        changed["sources"] = [
            {key: value for key, value in source.items() if key != "reward_field"} for source in data["sources"]
        ]
    if not conditions:
        changed["condition_dropout"] = 0.0
    return changed


def arm_recipe(
    recipe: Recipe, arm: Arm, *, folder: Path, seed: int, max_steps: int, epochs: int, learning_rate: float
) -> Recipe:
    """The recipe of one training run of an arm: same model, steps, learning rate and held-out prompts as all others."""
    values = recipe.model_dump(mode="json", by_alias=True, exclude_none=True)
    held_out_by = recipe.data.validation_seed if recipe.data.validation_seed is not None else recipe.seed
    prepared_dir = written_path(str(folder / arm.name / "prepared"))
    values["data"] = {**arm.data, "prepared_dir": prepared_dir, "validation_seed": held_out_by}
    values["name"] = _run_name(recipe.name, arm.name, seed)
    values["output_dir"] = written_path(str(run_dir(folder, arm.name, seed)))
    values["seed"] = seed
    values["train"] |= {"max_steps": max_steps, "epochs": epochs, "push_to_hub": None}
    values["optimizer"]["learning_rate"] = learning_rate
    values["validation"]["benchmarks"] = []  # asked once, of the trained arm (`score.py`)
    values["model"].pop("inference_condition", None)  # an arm may not have it
    return Recipe.model_validate(values)


def _run_name(recipe_name: str, arm_name: str, seed: int) -> str:
    """The name of a run, as `NAME_PATTERN` allows it."""
    end = f"-{short_file_name(arm_name, most_characters=_ARM_CHARACTERS)}-{seed}"
    return recipe_name[: _RUN_CHARACTERS - len(end)] + end


def run_dir(folder: Path, arm_name: str, seed: int) -> Path:
    """The run folder of an arm and seed."""
    return folder / arm_name / f"seed-{seed}"
