"""Fixtures of runs that are disturbed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ochat_train.prepare_data import prepare_recipe
from ochat_train.recipe import load_recipe
from tests.conftest import TINY_MODEL, RecipeFactory, train_on_ranks

LONG: dict[str, Any] = {
    "model__config": {**TINY_MODEL, "attention_dropout": 0.1},
    "train__epochs": 5,
    "train__max_steps": 28,
    "checkpoint__save_every_steps": 3,
}


def prepared(make_recipe: RecipeFactory, output_dir: Path, **changes: Any) -> Path:
    """A recipe of 28 steps with dropout, prepared; it lies beside its output folder."""
    path = make_recipe(output_dir=str(output_dir), **{**LONG, **changes})
    prepare_recipe(load_recipe(path), num_workers=1, progress=lambda rows: None)
    return path.rename(output_dir.with_suffix(".yaml"))


@pytest.fixture(scope="module")
def undisturbed_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("undisturbed") / "run"


@pytest.fixture
def undisturbed(undisturbed_dir: Path, make_recipe: RecipeFactory) -> Path:
    """The run of `prepared` without a fault, made once."""
    if not undisturbed_dir.exists():
        train_on_ranks(["train", prepared(make_recipe, undisturbed_dir)])
    return undisturbed_dir
