"""Small optimizer states in real DeepSpeed processes on the CPU: the same training, exact resume, other numbers of ranks."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from data_pipeline.errors import UserError
from ochat_train.checkpoint.size import checkpoint_bytes
from ochat_train.checkpoint.state import verify
from ochat_train.export.export import load_trained_weights
from ochat_train.recipe.load import load_recipe
from ochat_train.recipe.preparation import prepare_recipe
from tests.support.processes import run_jobs, train_on_ranks
from tests.support.reference import flat, relative_error
from tests.support.run_folder import metrics
from tests.support.small_recipe import RecipeFactory

Runs = dict[str, dict[str, Any]]
TrainFunction = Callable[..., dict[str, Path]]


@pytest.fixture
def train(tmp_path: Path, make_recipe: RecipeFactory) -> TrainFunction:
    """Prepares and trains runs on ranks that are started once; returns their run folders by name."""

    def train_runs(runs: Runs, *, num_ranks: int = 2) -> dict[str, Path]:
        commands: list[list[Any]] = []
        for name, changes in runs.items():
            recipe = make_recipe(output_dir=str(tmp_path / name), **changes)
            prepare_recipe(load_recipe(recipe), num_workers=1, progress=lambda rows: None)
            commands.append(["train", recipe.rename(tmp_path / f"{name}.yaml")])
        train_on_ranks(*commands, num_ranks=num_ranks)
        return {name: tmp_path / name for name in runs}

    return train_runs


SHORT = {"train__max_steps": 4, "checkpoint__save_every_steps": 2, "checkpoint__keep_last": 9}


def case(states: str, stage: int, precision: str) -> dict[str, Any]:
    return {**SHORT, "optimizer__states": states, "deepspeed__zero_stage": stage, "model__precision": precision}


CASES = {
    "8bit_1": case("8bit", 1, "bfloat16"),
    "8bit_3": case("8bit", 3, "bfloat16"),
    "bfloat16_2": case("bfloat16", 2, "bfloat16"),
    "8bit_0_wide": case("8bit", 0, "float32"),
    "8bit_2_wide": case("8bit", 2, "float32"),
}


def weights_of(run_dir: Path, step: int = 4) -> dict[str, torch.Tensor]:
    return load_trained_weights(run_dir / "checkpoints" / f"step-{step:08d}")


def losses(run_dir: Path) -> list[float]:
    return [line["loss"] for line in metrics(run_dir)]


def test_resume(train: TrainFunction, tmp_path: Path) -> None:
    import time
    t=time.time()
    wide = {f"wide_{precision}": case("float32", 1, precision) for precision in ("float32", "bfloat16")}
    runs = train({**CASES, **wide})
    print("A",time.time()-t)
    for name in runs: print(name, losses(runs[name]))
    for name in CASES:
        shutil.copytree(runs[name], tmp_path / f"again_{name}")
        shutil.rmtree(tmp_path / f"again_{name}" / "checkpoints" / "step-00000004")
    again = train({f"again_{name}": changes for name, changes in CASES.items()})
    print("B",time.time()-t)
    for name in CASES:
        assert losses(again[f"again_{name}"]) == losses(runs[name])
        a,b=weights_of(again[f"again_{name}"]),weights_of(runs[name])
        assert all(torch.equal(a[k],b[k]) for k in a), name
    for name in CASES:
        if "0" in name: continue
        shutil.copytree(runs[name], tmp_path / f"one_{name}")
        shutil.rmtree(tmp_path / f"one_{name}" / "checkpoints" / "step-00000004")
    one = train({f"one_{name}": changes for name, changes in CASES.items() if "0" not in name}, num_ranks=1)
    print("C",time.time()-t)
    for name in one: print(name, losses(one[name]), relative_error(flat(weights_of(one[name])),flat(weights_of(runs[name[4:]]))), relative_error(flat(weights_of(runs[name[4:]])),flat(weights_of(runs["wide_float32"]))))
    for name in runs:
        import subprocess
        print(name, subprocess.run(["du","-ab",str(runs[name]/"checkpoints"/"step-00000004")],capture_output=True,text=True).stdout)
