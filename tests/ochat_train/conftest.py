"""Runs that are disturbed, and gradients of a run's first step."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from tests.support.disturbed_runs import prepared
from tests.support.processes import train_on_ranks
from tests.support.small_recipe import RecipeFactory


@pytest.fixture
def undisturbed(make_recipe: RecipeFactory) -> Path:
    """The run of `prepared` without a fault, made once for all workers of these tests."""
    session = os.environ.get("PYTEST_XDIST_TESTRUNUID", str(os.getpid()))
    folder = Path(os.environ["OCHAT_TEST_CACHE"]) / f"undisturbed-{session}"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "done").exists():
            train_on_ranks(["train", prepared(make_recipe, folder / "run")])
            (folder / "done").touch()
    return folder / "run"
