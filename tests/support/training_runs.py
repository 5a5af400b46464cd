"""Runs of the small recipe, trained by real ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ochat_train.recipe.load import load_recipe
from ochat_train.recipe.preparation import prepare_recipe
from tests.support.processes import train_on_ranks
from tests.support.small_recipe import RecipeFactory

Runs = dict[str, dict[str, Any]]  # name of a run -> changes of the recipe


def train_runs(runs: Runs, folder: Path, make_recipe: RecipeFactory, *, num_ranks: int = 2) -> dict[str, Path]:
    """Prepare and train runs on ranks that are started once; their run folders in `folder`, by name."""
    commands: list[list[Any]] = []
    for name, changes in runs.items():
        recipe = make_recipe(output_dir=str(folder / name), **changes)
        prepare_recipe(load_recipe(recipe), num_workers=1, progress=lambda rows: None)
        commands.append(["train", recipe.rename(folder / f"{name}.yaml")])
    train_on_ranks(*commands, num_ranks=num_ranks)
    return {name: folder / name for name in runs}
