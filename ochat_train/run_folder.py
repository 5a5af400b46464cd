"""What a run folder holds beside metrics and checkpoints, so that it can be exported without anything else.

OUTPUT_DIR/
    recipe.json          the recipe of the run, every value
    prepared.json        the manifest of the prepared dataset
    tokenizer/           the tokenizer folder of the prepared dataset
    model_config/        the model's config.json and generation_config.json, with all token rows
    metrics.jsonl, checkpoints/
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline.dataset import MANIFEST, TOKENIZER_FOLDER, Manifest
from data_pipeline.errors import UserError
from ochat_train.recipe import Recipe

RECIPE_FILE = "recipe.json"
PREPARED_FILE = "prepared.json"
MODEL_CONFIG_FOLDER = "model_config"


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """A run as `ochat export` finds it."""

    path: Path
    recipe: Recipe
    prepared: Manifest


def write_run_folder(output_dir: Path, recipe: Recipe, causal_lm: Any) -> None:
    """Write everything but metrics and checkpoints. One process calls it, before the first step."""
    output_dir.mkdir(parents=True, exist_ok=True)
    prepared_dir = Path(recipe.data.prepared_dir)
    text = json.dumps(recipe.model_dump(mode="json", by_alias=True), indent=1, ensure_ascii=False)
    (output_dir / RECIPE_FILE).write_text(text + "\n", encoding="utf-8")
    shutil.copyfile(prepared_dir / MANIFEST, output_dir / PREPARED_FILE)
    shutil.copytree(prepared_dir / TOKENIZER_FOLDER, output_dir / TOKENIZER_FOLDER, dirs_exist_ok=True)
    causal_lm.config.save_pretrained(output_dir / MODEL_CONFIG_FOLDER)
    if causal_lm.generation_config is not None:
        causal_lm.generation_config.save_pretrained(output_dir / MODEL_CONFIG_FOLDER)


def read_run_folder(path: Path) -> RunFolder:
    """Read a run folder. Raises UserError where the folder is not one."""
    if not (path / RECIPE_FILE).is_file():
        raise UserError(f"{path}: not a run folder ({RECIPE_FILE} is missing); name the recipe's `output_dir`")
    recipe = Recipe.model_validate_json((path / RECIPE_FILE).read_text(encoding="utf-8"))
    content = (path / PREPARED_FILE).read_text(encoding="utf-8")
    return RunFolder(path=path, recipe=recipe, prepared=Manifest.from_json(json.loads(content), where=str(path)))
