"""An export that is not the trained model is refused, and nothing of it stays."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from data_pipeline.errors import UserError
from data_pipeline.prepared.dataset import Manifest
from ochat_train.export import export as exporting
from ochat_train.export import verify
from ochat_train.export.export import export
from ochat_train.export.verify import logits_of
from ochat_train.model import borders
from ochat_train.runs.folder import RunFolder, read_run_folder
from tests.support.exports import prepared_recipe, random_model, write_run
from tests.support.hybrids import hybrid_config
from tests.support.small_recipe import RecipeFactory

MISTRAL = {"model_type": "mistral", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
MISTRAL |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 256}


def other_weight(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 3] += 1e-6
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def other_rotary(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["rope_theta"] = config["rope_parameters"]["rope_theta"] = 7.0
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


def written(tmp_path: Path, recipe_path: Path, config: dict[str, Any]) -> tuple[Path, Any]:
    """The folder of a run, and its model."""
    recipe = prepared_recipe(recipe_path)
    manifest = Manifest.load(Path(recipe.data.prepared_dir))
    assert manifest is not None
    model = random_model(recipe, **{**config, "vocab_size": manifest.vocab_size})
    write_run(tmp_path / "run", recipe, model)
    return tmp_path / "run", model


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (other_weight, "weights changed on the way to disk: model.layers.1.mlp.up_proj.weight"),
        (other_rotary, "the loaded model gives other logits"),
    ],
)
def test_an_export_that_differs_is_refused(
    damage: Callable[[Path], None],
    message: str,
    tmp_path: Path,
    make_recipe: RecipeFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run, _ = written(tmp_path, make_recipe(), MISTRAL)
    write_config = exporting.write_portable_config

    def damaged(folder: Path, config: Any) -> None:
        write_config(folder, config)
        damage(folder)

    monkeypatch.setattr(exporting, "write_portable_config", damaged)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UserError, match=message):
        export(run, tmp_path / "export", step=None, max_shard_size="5GB")
    assert sorted(tmp_path.iterdir()) == before
    monkeypatch.setattr(exporting, "write_portable_config", write_config)  # the control
    export(run, tmp_path / "export", step=None, max_shard_size="5GB")


def test_weights_that_lie_elsewhere_may_round_otherwise(
    tmp_path: Path, make_recipe: RecipeFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Qwen2-MoE's gate of its shared expert does, on some CPUs: its exports were refused."""
    run, _ = written(tmp_path, make_recipe(), MISTRAL)
    seen = []

    def logits_by_place(run: RunFolder, model: Any) -> list[torch.Tensor]:
        seen.append(float(any(parameter.data_ptr() % 64 for parameter in model.parameters())))
        return [torch.tensor(seen[-1]) for _ in verify.prompts(run)]

    monkeypatch.setattr(verify, "logits_of", logits_by_place)
    export(run, tmp_path / "export", step=None, max_shard_size="5GB")
    assert seen[0] != seen[1], "the control: they lay otherwise"
    assert seen[2:] == [0.0, 0.0]


@pytest.mark.gpu
def test_gpu_logits_of_a_hybrid_come_from_the_gpu(tmp_path: Path, make_recipe: RecipeFactory) -> None:
    """Kernels of mixers, where they are installed, raise on the CPU."""
    run, model = written(tmp_path, make_recipe(), hybrid_config("bamba", mamba_n_groups=1))
    assert borders.device_to_run_on(model, torch.device("cuda")).type == "cuda"
    logits = logits_of(read_run_folder(run), model)
    assert {(x.device.type, bool(x.isfinite().all())) for x in logits} == {("cpu", True)}
    export(run, tmp_path / "export", step=None, max_shard_size="5GB")
