"""Adapters in real DeepSpeed processes: the same steps on any number of ranks, checkpoints, resuming."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint
from safetensors.torch import load_file

from ochat_train.adapter.folder import peft_name
from ochat_train.checkpoint.state import STATE, CheckpointManifest
from ochat_train.export.export import export
from ochat_train.recipe.load import load_recipe
from ochat_train.recipe.preparation import prepare_recipe
from tests.support.adapters import write_base
from tests.support.measured import Measured
from tests.support.processes import run_jobs
from tests.support.reference import flat, relative_error
from tests.support.run_folder import metrics
from tests.support.small_recipe import RecipeFactory

NAMES = {0: "straight0", 1: "straight1", 2: "straight2", 3: "straight3"}
SAVED = {"train__max_steps": 4, "checkpoint__save_every_steps": 2, "checkpoint__keep_last": 9}
DROPOUT = {"adapter": {"type": "lora", "rank": 4, "dropout": 0.2}, "model__precision": "bfloat16"}


@pytest.fixture
def recipe_of(tmp_path: Path, make_recipe: RecipeFactory, small_tokenizer_dir: Path) -> Any:
    """Writes and prepares the recipe of a run with an adapter."""
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


Write = Callable[..., Path]


def trained(run_dir: Path, step: int) -> dict[str, torch.Tensor]:
    """What a checkpoint holds of the adapter, by PEFT's names."""
    folder = run_dir / "checkpoints" / f"step-{step:08d}"
    if CheckpointManifest.load(folder).recipe["deepspeed"]["zero_stage"] == 0:
        state = torch.load(folder / STATE / "mp_rank_00_model_states.pt", weights_only=False)["module"]
    else:
        state = get_fp32_state_dict_from_zero_checkpoint(str(folder), tag=STATE)
    return {peft_name(name.removeprefix("causal_lm.")): tensor for name, tensor in state.items()}


def test_a_quantised_base_is_trained_resumed_and_exported(recipe_of: Write, tmp_path: Path) -> None:
    """ZeRO-2 on two ranks in bfloat16: the resumed run ends with the same bits, and both exports are proven."""
    changes = {**SAVED, "adapter": {"type": "qlora", "rank": 4}, "model__precision": "bfloat16"}
    middle = tmp_path / "straight" / "checkpoints" / "step-00000002"
    commands = [["train", recipe_of("straight", **changes)], ["train", recipe_of("resumed", **changes)]]
    commands[1] += ["--resume", str(middle)]
    assert run_jobs(*({"command": command} for command in commands))[1] == [0, 0]
    before, after = (trained(tmp_path / name, 4) for name in ("straight", "resumed"))
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    for adapter in (False, True):
        folder = export(
            tmp_path / "resumed", tmp_path / f"out{adapter}", step=None, max_shard_size="5GB", adapter=adapter
        )
        logits = json.loads((folder / "ochat.json").read_text())["adapter"]["logits"]
        assert logits["equal"] < 1e-5
    stored = load_file(tmp_path / "outFalse" / "model.safetensors")
    base = load_file(tmp_path / "base" / "model.safetensors")
    moved = relative_error(stored["model.norm.weight"], base["model.norm.weight"])
    assert moved < 1e-2, "what is frozen and not quantised is that of the base, rounded"
    rounded = relative_error(stored["model.layers.0.mlp.up_proj.weight"], base["model.layers.0.mlp.up_proj.weight"])
    assert rounded > 0.05, "what was quantised is the dequantised base"


def forget_last(run_dir: Path, copy: Path) -> None:
    shutil.copytree(run_dir, copy)
    shutil.rmtree(copy / "checkpoints" / "step-00000004")


def test_ranks_stages_and_resumes_take_the_same_steps(recipe_of: Write, tmp_path: Path, measured: Measured) -> None:
    """ZeRO 0 to 3 on two ranks, and one rank from the middle on; a resume on as many ranks is bit-equal.

    Frozen weights never change, on any rank; trained ones do in every step.
    """
    jobs = []
    for stage, name in NAMES.items():
        note = {"step": 1, "times": 9, "do": "note_weights", "file": str(tmp_path / f"weights{stage}")}
        command = ["train", recipe_of(name, deepspeed__zero_stage=stage, **SAVED)]
        jobs.append({"command": command, "fault": note})
    jobs.append({"command": ["train", recipe_of("straight", **SAVED, **DROPOUT)]})
    assert run_jobs(*jobs)[1] == [0, 0]
    forget_last(tmp_path / "straight", tmp_path / "resumed")
    assert run_jobs({"command": ["train", recipe_of("resumed", **SAVED, **DROPOUT)]})[1] == [0, 0]
    for stage in (2, 3):
        forget_last(tmp_path / NAMES[stage], tmp_path / f"one{stage}")
    others = [recipe_of(f"one{stage}", deepspeed__zero_stage=stage, **SAVED) for stage in (2, 3)]
    assert run_jobs(*({"command": ["train", recipe]} for recipe in others), num_ranks=1)[1] == [0]

    truth = trained(tmp_path / NAMES[0], 4)
    for name in [*NAMES.values(), "one2", "one3"]:
        found = trained(tmp_path / name, 4)
        assert found.keys() == truth.keys()
        measured("adapters of ZeRO 0 to 3, and of one rank after two", relative_error(flat(found), flat(truth)))
        assert relative_error(flat(found), flat(truth)) < 1e-5, name
        for line, expected in zip(metrics(tmp_path / name), metrics(tmp_path / NAMES[0]), strict=True):
            assert line["loss"] == pytest.approx(expected["loss"], rel=2e-6), name
    lines = [
        [line["loss"], line["grad_norm"], line["classes"]]
        for name in ("straight", "resumed")
        for line in metrics(tmp_path / name)
    ]
    assert lines[:4] == lines[4:]
    before, after = (trained(tmp_path / name, 4) for name in ("straight", "resumed"))
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    for stage in NAMES:
        digests = [line.split() for line in (tmp_path / f"weights{stage}").read_text(encoding="utf-8").splitlines()]
        assert (len(digests), len({frozen for frozen, _ in digests})) == (4, 1)
        assert len({changed for _, changed in digests}) == 4
    check_contents(tmp_path, truth)


def check_contents(folder: Path, truth: dict[str, torch.Tensor]) -> None:
    """A checkpoint holds the adapter's weights, master copies and two moments, and no other tensor."""
    num_trained = sum(tensor.numel() for tensor in truth.values())
    for stage, expected in ((1, 4 + 12), (2, 4 + 12), (3, 12)):
        state = folder / NAMES[stage] / "checkpoints" / "step-00000004" / STATE
        found = sum(tensor_bytes(torch.load(file, weights_only=False)) for file in state.glob("*.pt"))
        assert expected * num_trained <= found <= 1.1 * expected * num_trained, stage
    manifest = CheckpointManifest.load(state.parent)
    assert manifest.adapter is not None
    rows = {name: len(tensor) for name, tensor in truth.items() if "token_adapter" in name}
    assert list(rows.values()) == [len(manifest.adapter.token_ids)] * 2
    assert (len(manifest.adapter.modules), len(manifest.adapter.token_ids)) == (14, 1)


def tensor_bytes(value: Any) -> int:
    """Bytes of all tensors in what a file holds."""
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else []
    return sum(map(tensor_bytes, inner))
