"""Runs with an adapter that were not trained: a small base in a folder, and a checkpoint of given adapter tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

from data_pipeline.files import sha256_of_file
from data_pipeline.prepared.dataset import Manifest
from ochat_train.adapter.base_hash import base_sha256
from ochat_train.adapter.build import add_adapter
from ochat_train.adapter.quantize import quantise_base
from ochat_train.checkpoint.basis import AdapterBasis, config_values
from ochat_train.checkpoint.state import STATE, CheckpointManifest, Progress, checkpoint_dir
from ochat_train.model.build import load_base
from ochat_train.model.config import load_base_config
from ochat_train.model.weights.token_rows import ControlTokens
from ochat_train.recipe.recipe import Recipe
from ochat_train.runs.folder import read_run_folder, write_run_folder
from tests.support.small_recipe import TINY_MODEL


def write_base(
    folder: Path, *, num_rows: int, seed: int = 0, dtype: torch.dtype = torch.float32, **config: Any
) -> Path:
    """A base with random weights that are large enough for every module to matter."""
    torch.manual_seed(seed)
    values = {**TINY_MODEL, "vocab_size": num_rows, "initializer_range": 0.3, **config}
    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**values), dtype=dtype)
    model.save_pretrained(folder)
    return folder


def write_adapted_run(
    run_dir: Path, recipe: Recipe, *, dtype: torch.dtype = torch.float32, scale: float = 0.1
) -> tuple[Path, Any]:
    """The folder of a run on one rank that ended with a random adapter; its checkpoint, and the model.

    recipe: prepared. dtype: of the forward pass. scale: of the adapter's numbers.
    """
    adapter, prepared_dir = recipe.adapter, Path(recipe.data.prepared_dir)
    prepared = Manifest.load(prepared_dir)
    assert adapter is not None
    assert prepared is not None
    config = load_base_config(recipe.model, prepared.vocab_size)
    control = ControlTokens.of_prepared(prepared_dir, prepared)
    base = load_base(recipe.model, prepared, config, dtype=dtype, attention=None, seed=recipe.seed, control=control)
    model = base.causal_lm
    sha256 = base_sha256(recipe.model, model)
    if adapter.type == "qlora":
        quantise_base(model, device=torch.device("cpu"), dtype=dtype)
    added = add_adapter(model, adapter, new_token_ids=base.new_token_ids, seed=recipe.seed)
    torch.manual_seed(1)
    trained = {name: found for name, found in model.named_parameters() if found.requires_grad}
    for found in trained.values():
        found.data += (torch.randn(found.shape) * scale).to(found.dtype)
    run_dir.mkdir()
    write_run_folder(run_dir, recipe, model)
    checkpoint = checkpoint_dir(run_dir, 1)
    (checkpoint / STATE).mkdir(parents=True)
    file = checkpoint / STATE / "mp_rank_00_model_states.pt"
    torch.save({"module": {f"causal_lm.{name}": value.detach().clone() for name, value in trained.items()}}, file)
    run = read_run_folder(run_dir)
    manifest = CheckpointManifest(
        progress=Progress(step=1),
        num_ranks=1,
        recipe=run.recipe.model_dump(mode="json", by_alias=True),
        data_fingerprint=run.prepared.fingerprint,
        validation_loss=None,
        versions={},
        base_config=config_values(model.config),
        adapter=AdapterBasis(base_sha256=sha256, modules=added.modules, token_ids=added.token_ids),
        files={str(file.relative_to(checkpoint)): (file.stat().st_size, sha256_of_file(file))},
    )
    manifest.write(checkpoint)
    return checkpoint, model.eval()
