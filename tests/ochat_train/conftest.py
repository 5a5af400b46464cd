"""Runs that are disturbed, and gradients of a run's first step."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.disturbed_runs import prepared
from tests.support.processes import train_on_ranks
from tests.support.small_recipe import RecipeFactory


@pytest.fixture(scope="module")
def undisturbed_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("undisturbed") / "run"


@pytest.fixture
def undisturbed(undisturbed_dir: Path, make_recipe: RecipeFactory) -> Path:
    """The run of `prepared` without a fault, made once."""
    if not undisturbed_dir.exists():
        train_on_ranks(["train", prepared(make_recipe, undisturbed_dir)])
    return undisturbed_dir
