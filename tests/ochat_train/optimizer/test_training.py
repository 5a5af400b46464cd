"""Small optimizer states in real DeepSpeed processes on the CPU: the same training, exact resume, other numbers of
ranks.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from ochat_train.checkpoint.room import checkpoint_bytes
from ochat_train.export.trained import load_trained_weights
from ochat_train.recipe.load import load_recipe
from tests.support.reference import flat, relative_error
from tests.support.run_folder import metrics
from tests.support.small_recipe import RecipeFactory
from tests.support.training_runs import train_runs

TrainFunction = Callable[..., dict[str, Path]]


@pytest.fixture
def train(tmp_path: Path, make_recipe: RecipeFactory) -> TrainFunction:
    """Prepares and trains runs on ranks that are started once; returns their run folders by name."""
    return partial(train_runs, folder=tmp_path, make_recipe=make_recipe)


SHORT = {"train__max_steps": 4, "checkpoint__save_every_steps": 2, "checkpoint__keep_last": 9}


def case(states: str, stage: int, precision: str) -> dict[str, Any]:
    return {**SHORT, "optimizer__states": states, "deepspeed__zero_stage": stage, "model__precision": precision}


CASES = {
    "8bit_0_wide": case("8bit", 0, "float32"),
    "8bit_1": case("8bit", 1, "bfloat16"),
    "bfloat16_2": case("bfloat16", 2, "bfloat16"),
    "8bit_3": case("8bit", 3, "bfloat16"),
}


def weights_of(run_dir: Path, step: int = 4) -> dict[str, torch.Tensor]:
    return load_trained_weights(run_dir / "checkpoints" / f"step-{step:08d}")


def losses(run_dir: Path) -> list[float]:
    return [line["loss"] for line in metrics(run_dir)]


def test_small_states_train_alike_and_resume_bit_equal_and_on_one_rank(train: TrainFunction, tmp_path: Path) -> None:
    """ZeRO 0 to 3, on 2 ranks and then on 1. The control of each bound: other states give other weights."""
    runs = train({**CASES, "wide": case("float32", 1, "bfloat16")})
    for name in CASES:
        assert losses(runs[name]) == pytest.approx(losses(runs["wide"]), rel=5e-4), name
        assert relative_error(flat(weights_of(runs[name])), flat(weights_of(runs["wide"]))) > 1e-5, name
        check_size(runs[name], num_ranks=2)
        for kind in ("again", "alone"):
            shutil.copytree(runs[name], tmp_path / f"{kind}_{name}")
            shutil.rmtree(tmp_path / f"{kind}_{name}" / "checkpoints" / "step-00000004")
    again = train({f"again_{name}": changes for name, changes in CASES.items()})
    for name in CASES:
        assert losses(again[f"again_{name}"]) == losses(runs[name])
        expected = weights_of(runs[name])
        assert all(torch.equal(value, expected[key]) for key, value in weights_of(again[f"again_{name}"]).items()), name
    sharded = [name for name in CASES if name != "8bit_0_wide"]  # without ZeRO nothing is converted
    alone = train({f"alone_{name}": CASES[name] for name in sharded}, num_ranks=1)
    for name in sharded:
        assert losses(alone[f"alone_{name}"]) == pytest.approx(losses(runs[name]), rel=5e-5), name
        assert relative_error(flat(weights_of(alone[f"alone_{name}"])), flat(weights_of(runs[name]))) < 2e-3, name
        check_size(alone[f"alone_{name}"], num_ranks=1)


def check_size(run_dir: Path, *, num_ranks: int) -> None:
    """The tensors of a checkpoint take the bytes that were computed, and the files little more."""
    checkpoint = run_dir / "checkpoints" / "step-00000004"
    recipe = load_recipe(run_dir.with_suffix(".yaml"))
    num = sum(tensor.numel() for tensor in weights_of(run_dir).values())
    computed = checkpoint_bytes(
        num,
        zero_stage=recipe.deepspeed.stage,
        bfloat16=recipe.model.precision == "bfloat16",
        num_ranks=0,
        states=recipe.optimizer.states,
    )
    files = sum(path.stat().st_size for path in (checkpoint / "state").iterdir())
    assert computed < files < computed + num_ranks * 40_000, (files, computed)
