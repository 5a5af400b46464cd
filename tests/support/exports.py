"""Exports of models that were not trained: a run folder with a checkpoint of given weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

from data_pipeline.files import sha256_of_file
from ochat_train.checkpoint.state import STATE, CheckpointManifest, Progress, checkpoint_dir
from ochat_train.recipe.load import load_recipe
from ochat_train.recipe.preparation import prepare_recipe
from ochat_train.recipe.recipe import Recipe
from ochat_train.runs.folder import read_run_folder, write_run_folder


def prepared_recipe(path: Path) -> Recipe:
    """A recipe whose data is prepared."""
    recipe = load_recipe(path)
    prepare_recipe(recipe, num_workers=1, progress=lambda rows: None)
    return recipe


def random_model(recipe: Recipe, vocab_size: int, **config: Any) -> Any:
    """A model of any family with weights that are large enough for positions, windows and experts to matter."""
    torch.manual_seed(0)
    values = {"vocab_size": vocab_size, "initializer_range": 0.3, **config}
    return transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.for_model(**values), dtype=torch.float32
    ).eval()


def write_run(run_dir: Path, recipe: Recipe, model: Any) -> Path:
    """The folder of a run on one rank that ended with these weights; its checkpoint."""
    run_dir.mkdir()
    write_run_folder(run_dir, recipe, model)
    checkpoint = checkpoint_dir(run_dir, 1)
    (checkpoint / STATE).mkdir(parents=True)
    file = checkpoint / STATE / "mp_rank_00_model_states.pt"
    torch.save({"module": {f"causal_lm.{name}": value for name, value in model.state_dict().items()}}, file)
    run = read_run_folder(run_dir)
    manifest = CheckpointManifest(
        progress=Progress(step=1),
        num_ranks=1,
        recipe=run.recipe.model_dump(mode="json", by_alias=True),
        data_fingerprint=run.prepared.fingerprint,
        validation_loss=None,
        versions={},
        files={str(file.relative_to(checkpoint)): (file.stat().st_size, sha256_of_file(file))},
    )
    manifest.write(checkpoint)
    return checkpoint
