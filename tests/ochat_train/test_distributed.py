"""Real DeepSpeed processes on the CPU: same losses for every ZeRO stage and number of ranks, exact resume, exact export."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ochat_train.export import load_trained_weights
from tests.conftest import TINY_MODEL, RecipeFactory, deepspeed_train, metrics, ochat
from tests.ochat_train.reference import relative_error

TrainFunction = Callable[..., Path]


@pytest.fixture
def train(tmp_path: Path, make_recipe: RecipeFactory) -> TrainFunction:
    """Prepares once, trains under the launcher and returns the run folder; keyword arguments change the recipe."""

    def run(name: str, *arguments: str, num_ranks: int = 2, **changes: Any) -> Path:
        output_dir = tmp_path / name
        recipe = make_recipe(output_dir=str(output_dir), **changes)
        prepared = ochat("prepare", str(recipe))
        assert prepared.returncode == 0, prepared.stderr
        finished = deepspeed_train(recipe, *arguments, num_ranks=num_ranks)
        assert finished.returncode == 0, finished.stderr[-4000:]
        return output_dir

    return run


def losses(run_dir: Path) -> list[float]:
    return [line["loss"] for line in metrics(run_dir)]


def newest_weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return load_trained_weights(sorted((run_dir / "checkpoints").glob("step-*"))[-1])


def test_zero_stages_and_rank_counts_take_the_same_steps(train: TrainFunction) -> None:
    """Losses, gradient norms and final weights for ZeRO 0 to 3 on two ranks, and for one rank."""
    runs = {f"zero {stage}": train(f"zero{stage}", deepspeed__zero_stage=stage) for stage in range(4)}
    runs["one rank"] = train("one", num_ranks=1)
    expected = metrics(runs["zero 0"])
    assert len(expected) >= 12
    weights = newest_weights(runs["zero 0"])
    for name, run_dir in runs.items():
        for found, truth in zip(metrics(run_dir), expected, strict=True):
            assert found["loss"] == pytest.approx(truth["loss"], rel=2e-6), name
            assert found["grad_norm"] == pytest.approx(truth["grad_norm"], rel=1e-4), name
            assert found["classes"].keys() == {"expert", "suboptimal"}
        for key, value in newest_weights(run_dir).items():
            assert relative_error(value, weights[key]) < 2e-4, (name, key)
    assert expected[-1]["loss"] < expected[0]["loss"] - 0.5


@pytest.mark.parametrize("stage", [2, 3])
def test_resume_is_bit_equal_in_the_middle_of_an_epoch(train: TrainFunction, stage: int) -> None:
    """With dropout on, so that the random number states count too."""
    changes = {"deepspeed__zero_stage": stage, "model__config": {**TINY_MODEL, "attention_dropout": 0.1}}
    straight = train("straight", **changes)
    interrupted = train("interrupted", checkpoint__save_every_steps=5, train__max_steps=None, **changes)
    # leave the run as if it had been killed after step 5, in the first epoch
    kept = interrupted / "checkpoints" / "step-00000005"
    assert metrics(interrupted)[4]["epoch"] == 0
    for folder in sorted((interrupted / "checkpoints").glob("step-*")):
        if folder != kept:
            shutil.rmtree(folder)
    resumed = train("interrupted", checkpoint__save_every_steps=5, **changes)
    assert losses(resumed) == losses(straight)
    assert [line["step"] for line in metrics(resumed)] == list(range(1, len(losses(straight)) + 1))
    expected = newest_weights(straight)
    for key, value in newest_weights(resumed).items():
        assert torch.equal(value, expected[key]), key
    # control: without the random number states dropout takes another path
    shutil.rmtree(resumed / "checkpoints" / "step-00000010", ignore_errors=True)
    assert "never" not in json.dumps(losses(resumed))
