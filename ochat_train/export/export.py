"""From a checkpoint to a Hugging Face folder that is proven to hold the trained model before it gets its name."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from data_pipeline.errors import UserError
from data_pipeline.files import sha256_of_file
from data_pipeline.prepared.dataset import TOKENIZER_FOLDER
from data_pipeline.prepared.integrity import check_tokenizer_copy
from data_pipeline.unfinished_folders import replaced_folder
from ochat_train.adapter.folder import num_rows_needed
from ochat_train.checkpoint.choose import Step, reading, with_checkpoint
from ochat_train.checkpoint.state import CheckpointManifest, verify
from ochat_train.evaluation.results import Validation
from ochat_train.export.adapted import Differences, write_adapter_of
from ochat_train.export.card import CardFacts, last_until, model_card
from ochat_train.export.layout import CARD, DEFAULT_SHARD_SIZE, EXPORT_MARK
from ochat_train.export.portable_config import write_portable_config
from ochat_train.export.provenance import find_base_model
from ochat_train.export.public_recipe import public_recipe
from ochat_train.export.trained import load_merged, load_with_adapter, set_generation
from ochat_train.export.verify import logits_of, verify_model, verify_tokenizer
from ochat_train.runs.base_origin import origin_of
from ochat_train.runs.folder import MODEL_CONFIG_FOLDER, RunFolder, read_run_folder
from ochat_train.runs.lines import METRICS_FILE, VALIDATION_FILE, results_of
from ochat_train.runs.metrics import StepMetrics
from ochat_train.runs.processor import processor_files
from ochat_train.system.library_output import quiet_libraries
from ochat_train.system.versions import library_versions

Finish = Callable[[Path], None]


def no_finish(folder: Path) -> None:
    """Nothing more is done to a folder."""


def export(
    run: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    step: Step = None,
    max_shard_size: str = DEFAULT_SHARD_SIZE,
    overwrite: bool = False,
    adapter: bool = False,
    base: str | None = None,
    finish: Finish = no_finish,
) -> Path:
    """Export the checkpoint that a user names: the newest (None), that of `step`, or the `best` validated one.

    The run may still train: where it deletes the newest or the best one while this reads it, the next one is exported.

    run: folder of the run. overwrite: whether an earlier export in `out` is replaced; without it a folder that holds
    anything is a UserError. Otherwise as `export_checkpoint`. Returns `out`.
    """
    run_dir, out = Path(run), Path(out)
    _check_out(out, overwrite=overwrite)
    folder = read_run_folder(run_dir)
    _check_adapter_options(folder, adapter=adapter, base=base)

    def export_one(checkpoint: Path) -> Path:
        return export_checkpoint(
            folder,
            checkpoint,
            out,
            max_shard_size=max_shard_size,
            overwrite=overwrite,
            adapter=adapter,
            base=base,
            finish=finish,
        )

    return with_checkpoint(run_dir, step, export_one, keep_last=folder.recipe.checkpoint.keep_last)


def export_checkpoint(
    run: RunFolder,
    checkpoint: Path,
    out: Path,
    *,
    max_shard_size: str = DEFAULT_SHARD_SIZE,
    overwrite: bool = False,
    adapter: bool = False,
    base: str | None = None,
    finish: Finish = no_finish,
) -> Path:
    """Write the model of a checkpoint of a run as a Hugging Face folder, or its adapter as a folder of PEFT.

    The folder is written under another name, loaded again, and compared: every weight with the trained one, the logits,
    and the tokenizer's ids with the prepared ones. Then it gets its model card and the name `out`. An adapter that is
    merged gives the logits that it gave unmerged, before its weights are rounded.

    max_shard_size: larger models are written as several files, as `5GB`. adapter: write the adapter alone. base: where
    the base of a run with an adapter is now, None for where the run had it. finish: done to the folder
    before it gets its name. Raises UserError for a damaged checkpoint, for an `out` that may not be replaced, and where
    a comparison fails; CheckpointDeletedError where the checkpoint is deleted before all of it is read.
    """
    quiet_libraries()
    replaceable = _check_out(out, overwrite=overwrite)
    with reading(checkpoint):
        if (problem := verify(checkpoint)) is not None:
            raise UserError(checkpoint, problem, "export another step")
        manifest = CheckpointManifest.load(checkpoint)
    check_tokenizer_copy(run.path, run.prepared)
    with replaced_folder(out, owned=replaceable) as folder:
        if adapter:
            found: Differences | None = _write_adapter(run, checkpoint, folder, base=base)
        else:
            found = _write_model(run, checkpoint, folder, base=base, max_shard_size=max_shard_size)
        named = run if base is None else replace(run, base_origin=origin_of(base))
        _write_card_and_mark(named, manifest, folder, is_merged=not adapter, found=found)
        finish(folder)
        _set_modes(folder)
    return out


def _check_adapter_options(run: RunFolder, *, adapter: bool, base: str | None) -> None:
    if run.recipe.adapter is None and (adapter or base is not None):
        option = "--adapter" if adapter else f"--base {base}"
        raise UserError(option, f"{run.path} trained all weights, and no adapter", "export it without")


def _write_model(
    run: RunFolder, checkpoint: Path, folder: Path, *, base: str | None, max_shard_size: str
) -> Differences | None:
    """Write weights and configuration so that transformers 4 reads them too, and compare them with the trained ones."""
    trained, found = load_merged(run, checkpoint, base=base, logits=lambda model: logits_of(run, model))
    # Which names of weights were converted while loading. The trained weights already had the names of the model; with
    # this list, which is then empty, they would be saved under those instead of the names that bases have on disk.
    vars(trained).pop("_weight_conversions", None)
    trained.save_pretrained(folder, max_shard_size=max_shard_size)
    write_portable_config(folder, trained.config)
    _copy_tokenizer(run, folder)
    verify_tokenizer(run, folder)
    verify_model(run, trained, folder)
    return found


def _write_adapter(run: RunFolder, checkpoint: Path, folder: Path, *, base: str | None) -> Differences:
    """Write the adapter of a checkpoint, and compare it, loaded by PEFT, with the trained model."""
    adapted = load_with_adapter(run, checkpoint, base=base)
    set_generation(run, adapted.causal_lm, adapted.causal_lm.config)
    adapted.causal_lm.generation_config.save_pretrained(folder)
    _copy_tokenizer(run, folder)
    verify_tokenizer(run, folder)
    return write_adapter_of(adapted, folder, lambda model: logits_of(run, model))


def _copy_tokenizer(run: RunFolder, folder: Path) -> None:
    for file in (*(run.path / TOKENIZER_FOLDER).iterdir(), *processor_files(run.path / MODEL_CONFIG_FOLDER)):
        shutil.copyfile(file, folder / file.name)


def _set_modes(folder: Path) -> None:
    """Give every file the mode that the umask gives new ones: safetensors makes files that others cannot read."""
    mode = (folder / EXPORT_MARK).stat().st_mode
    for file in folder.iterdir():
        file.chmod(mode)


def _check_out(out: Path, *, overwrite: bool) -> bool:
    """Whether `out` is an earlier export that may be replaced. Raises UserError where nothing can be written there."""
    there = next(path for path in (out, *out.parents) if path.exists())
    if not there.is_dir():
        raise UserError(f"--out {out}", f"{there} is a file, and an export is a folder", "name another one")
    replaceable = overwrite and (out / EXPORT_MARK).is_file()
    if out.exists() and any(out.iterdir()) and not replaceable:
        raise UserError(f"--out {out}", "already exists", "choose another folder, or `--overwrite` an earlier export")
    return replaceable


def _write_card_and_mark(
    run: RunFolder, manifest: CheckpointManifest, folder: Path, *, is_merged: bool, found: Differences | None
) -> None:
    """Write README.md, and ochat.json: what the model was made of, and the sha256 of every file of the export."""
    recipe, step = public_recipe(run.recipe), manifest.step
    # it may be gone, and then looks like a Hub id
    if run.base_origin is not None and run.base_origin.folder is not None:
        recipe["model"]["path"] = Path(run.base_origin.folder).name
    steps = results_of(run.path / METRICS_FILE, StepMetrics.from_json)
    validations = results_of(run.path / VALIDATION_FILE, Validation.from_json)
    facts = CardFacts(
        run=run,
        base=find_base_model(run.recipe.model, run.base_origin),
        step=step,
        recipe=recipe,
        versions=library_versions(),
        metrics=last_until(step, steps),
        validation=last_until(step, validations),
        adapter=run.recipe.adapter,
        is_merged=is_merged,
        has_token_rows=not is_merged and num_rows_needed(folder) > 0,
        differences=found,
    )
    (folder / CARD).write_text(model_card(facts), encoding="utf-8")
    mark = {
        "step": step,
        "template": run.prepared.template,
        "inference_condition": run.prepared.inference_condition,
        "classes": [vars(row) for row in run.prepared.classes],
        "recipe": recipe,
        "versions": facts.versions,
        **_adapter_mark(manifest, is_merged=is_merged, found=found),
        "files": {file.name: sha256_of_file(file) for file in sorted(folder.iterdir())},
    }
    (folder / EXPORT_MARK).write_text(json.dumps(mark, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _adapter_mark(manifest: CheckpointManifest, *, is_merged: bool, found: Differences | None) -> dict[str, Any]:
    """What ochat.json says of an adapter: its base, and how exact the export is. Nothing for all weights."""
    if manifest.adapter is None or found is None:
        return {}
    return {
        "adapter": {"merged": is_merged, "base_sha256": manifest.adapter.base_sha256, "logits": asdict(found)},
    }
