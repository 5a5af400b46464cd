"""A run folder: everything that an export needs is in it.

OUTPUT_DIR/
    recipe.json          the recipe of the run, every value
    prepared.json        the manifest of the prepared dataset
    base.json            where the base model came from: a folder, or a model of the Hub
    tokenizer/           the tokenizer folder of the prepared dataset
    model_config/        the model's config.json and generation_config.json, with all token rows
    starts.jsonl         when, with what and on which hardware the run was started (runs/starts.py)
    metrics.jsonl, validation.jsonl, samples.jsonl, anomalies.jsonl, checkpoints/    written while training
    hub/                 what is pushed to the Hub (hub/background_push.py)
    .lock                held by the process that trains here (runs/lock.py)
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from data_pipeline.errors import UserError
from data_pipeline.files import explained_writes
from data_pipeline.json_files import read_json, read_json_object, read_text, typed
from data_pipeline.path_keys import KEEP_UNSET
from data_pipeline.prepared.dataset import MANIFEST, TOKENIZER_FOLDER, Manifest
from data_pipeline.text_rules import did_you_mean
from ochat_train.recipe.recipe import Recipe
from ochat_train.runs.base_origin import BaseOrigin, base_origin
from ochat_train.runs.processor import keep_processor_files
from ochat_train.system.durable import replace_text

RECIPE_FILE = "recipe.json"
PREPARED_FILE = "prepared.json"
BASE_FILE = "base.json"
MODEL_CONFIG_FOLDER = "model_config"
_COPY_MANIFEST = f"copy {MANIFEST} of the dataset that it was trained on over it"
_REMEDY = "restore it, or run `ochat train` again, which writes it"


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """A run as `ochat export` finds it. base_origin: None for a run that did not record it."""

    path: Path
    recipe: Recipe
    prepared: Manifest
    base_origin: BaseOrigin | None = None


def write_run_folder(output_dir: Path, recipe: Recipe, causal_lm: Any) -> None:
    """Write everything but metrics and checkpoints, into a folder that is there (and locked).

    One process calls it, before the first step. Raises UserError where the disk is full.
    """
    prepared_dir = Path(recipe.data.prepared_dir)
    text = json.dumps(recipe.model_dump(mode="json", by_alias=True), indent=1, ensure_ascii=False)
    manifest = (prepared_dir / MANIFEST).read_text(encoding="utf-8")
    with explained_writes(output_dir):
        replace_text(output_dir / RECIPE_FILE, text + "\n")
        replace_text(output_dir / PREPARED_FILE, manifest)
        replace_text(output_dir / BASE_FILE, json.dumps(asdict(base_origin(recipe.model)), ensure_ascii=False) + "\n")
        shutil.copytree(prepared_dir / TOKENIZER_FOLDER, output_dir / TOKENIZER_FOLDER, dirs_exist_ok=True)
        causal_lm.config.save_pretrained(output_dir / MODEL_CONFIG_FOLDER)
        if hasattr(causal_lm.config, "text_config"):
            keep_processor_files(recipe.model, output_dir / MODEL_CONFIG_FOLDER)
        if causal_lm.generation_config is not None:
            causal_lm.generation_config.save_pretrained(output_dir / MODEL_CONFIG_FOLDER)


def require_run_folder(output_dir: Path) -> None:
    """Raise UserError if the folder of a run that has ended is not whole."""
    if not (output_dir / RECIPE_FILE).is_file():
        raise UserError(
            output_dir, f"{RECIPE_FILE} was removed while the run trained", "start the run again: it is written again"
        )


def read_run_folder(path: Path) -> RunFolder:
    """Read a run folder. Raises UserError if the folder is not one."""
    if not (path / RECIPE_FILE).is_file():
        remedy = "name the recipe's `output_dir`"
        if not path.exists():
            siblings = [folder.name for folder in path.parent.glob("*/")]
            raise UserError(path, "no such folder", did_you_mean(path.name, siblings) or remedy)
        raise UserError(path, f"not a run folder ({RECIPE_FILE} is missing)", remedy)
    if not any((path / name).exists() for name in (PREPARED_FILE, TOKENIZER_FOLDER, MODEL_CONFIG_FOLDER)):
        raise UserError(
            path,
            f"not a run folder ({PREPARED_FILE} is missing)",
            "name the recipe's `output_dir`; the runs of an ablation are in its folders ARM/seed-N",
        )
    base = path / BASE_FILE
    return RunFolder(
        path=path,
        recipe=_read_recipe(path / RECIPE_FILE),
        prepared=Manifest.from_json(
            read_json(path / PREPARED_FILE, remedy=_COPY_MANIFEST),
            where=str(path / PREPARED_FILE),
            remedy=_COPY_MANIFEST,
        ),
        base_origin=_read_base_origin(base) if base.is_file() else None,
    )


def _read_recipe(path: Path) -> Recipe:
    try:
        return Recipe.model_validate_json(read_text(path, remedy=_REMEDY), context=KEEP_UNSET)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        problem = f"is damaged, or of another version: {f'{place}: ' if place else ''}{first['msg']}"
        raise UserError(path, problem, _REMEDY) from None


def _read_base_origin(path: Path) -> BaseOrigin:
    try:
        return typed(BaseOrigin, read_json_object(path, remedy=_REMEDY))
    except ValueError:
        raise UserError(path, "is damaged: it does not say where the base came from", _REMEDY) from None
