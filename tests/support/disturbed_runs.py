"""Runs that are disturbed, and gradients of a run's first step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from ochat_train.recipe.load import load_recipe
from ochat_train.recipe.preparation import prepare_recipe
from tests.support.processes import start_ranks
from tests.support.small_recipe import TINY_MODEL, RecipeFactory

LONG: dict[str, Any] = {
    "model__config": {**TINY_MODEL, "attention_dropout": 0.1},
    "train__epochs": 5,
    "train__max_steps": 16,
    "checkpoint__save_every_steps": 3,
}


def prepared(make_recipe: RecipeFactory, output_dir: Path, **changes: Any) -> Path:
    """A recipe of 16 steps with dropout, prepared; the file is beside its output folder."""
    path = make_recipe(output_dir=str(output_dir), **{**LONG, **changes})
    prepare_recipe(load_recipe(path), num_workers=1, progress=lambda rows: None)
    return path.rename(output_dir.with_suffix(".yaml"))


def first_gradients(
    recipe: Path, out_dir: Path, cases: Sequence[str], *, num_ranks: int
) -> dict[str, dict[str, torch.Tensor]]:
    """Gradients of a prepared recipe's first step on ranks, by case of gradient_worker.py and then by parameter."""
    ranks = start_ranks("tests.support.gradient_worker", str(recipe), str(out_dir), *cases, num_ranks=num_ranks)
    outputs = [rank.communicate(timeout=300)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0] * num_ranks, outputs
    return {case: load_file(out_dir / f"{num_ranks} ranks {case}.safetensors") for case in cases}
