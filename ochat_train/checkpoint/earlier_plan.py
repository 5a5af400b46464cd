"""The plan of a run that is resumed: a run keeps the one that it was begun with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from data_pipeline.errors import UserError
from data_pipeline.plan.kinds import FIRST_PLAN, PlanKind
from ochat_train.checkpoint.state import CheckpointManifest, list_checkpoints
from ochat_train.recipe.recipe import Recipe
from ochat_train.system.messages import print_notice


def plan_of(recipe: Mapping[str, Any]) -> Any:
    """`train.plan` of a checkpoint's recipe. Recipes of runs that were begun before this key do not have it."""
    return recipe["train"].get("plan", FIRST_PLAN)


def plan_to_take(recipe: Recipe, resume: str) -> PlanKind:
    """The plan of the checkpoint to resume from, unless the recipe names a plan itself.

    So a run resumes with the same packs whatever the usual plan has become. resume: as for `read_earlier_run`. Damaged
    manifests are passed over here; they are named where the checkpoint is chosen.
    """
    if resume == "never" or "plan" in recipe.train.model_fields_set:
        return recipe.train.plan
    folders = list_checkpoints(Path(recipe.output_dir))[::-1] if resume == "auto" else [Path(resume)]
    for folder in folders:
        try:
            plan = plan_of(CheckpointManifest.load(folder).recipe)
        except (UserError, KeyError, TypeError, AttributeError):
            continue
        if plan not in get_args(PlanKind):
            continue
        if plan != recipe.train.plan:
            print_notice(f"train.plan: {plan}, as in {folder.name}")
        kind: PlanKind = plan
        return kind
    return recipe.train.plan


def with_plan(recipe: Recipe, plan: PlanKind) -> Recipe:
    """The recipe with a plan."""
    return recipe.model_copy(update={"train": recipe.train.model_copy(update={"plan": plan})})
