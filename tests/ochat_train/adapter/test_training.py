"""Adapters in real DeepSpeed processes: the same steps on any number of ranks, checkpoints, resuming."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ochat_train.adapter.state import peft_tensors
from ochat_train.checkpoint.state import STATE
from ochat_train.recipe.load import load_recipe
from ochat_train.recipe.preparation import prepare_recipe
from tests.support.adapters import write_base
from tests.support.processes import train_on_ranks
from tests.support.run_folder import metrics
from tests.support.small_recipe import RecipeFactory


@pytest.fixture
def recipe_of(tmp_path: Path, make_recipe: RecipeFactory, small_tokenizer_dir: Path) -> Any:
    """Writes and prepares the recipe of a run with an adapter on a base of its own."""
    base = write_base(tmp_path / "base", small_tokenizer_dir)

    def write(name: str, **changes: Any) -> Path:
        settings = {
            "output_dir": str(tmp_path / name),
            "model__config": None,
            "model__path": str(base),
            "adapter": {"type": "lora", "rank": 4},
            "train__max_steps": 4,
            **changes,
        }
        recipe = make_recipe(**settings)
        prepare_recipe(load_recipe(recipe), num_workers=1, progress=lambda rows: None)
        return recipe.rename(tmp_path / f"{name}.yaml")

    return write


def test_x(recipe_of, tmp_path):
    names = [f"zero{stage}" for stage in range(4)]
    train_on_ranks(*(["train", recipe_of(n, deepspeed__zero_stage=i)] for i, n in enumerate(names)), num_ranks=2)
    train_on_ranks(["train", recipe_of("one")], num_ranks=1)
    for n in [*names, "one"]:
        print([(m["loss"], m["grad_norm"]) for m in metrics(tmp_path / n)])
        print([(str(f.relative_to(tmp_path)), f.stat().st_size) for f in sorted((tmp_path/n/"checkpoints").rglob("*")) if f.is_file()])
