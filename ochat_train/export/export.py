"""From a checkpoint to a Hugging Face folder that is proven to hold the trained model before it gets its name."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from pathlib import Path
from typing import Any, Literal

import torch

from data_pipeline.errors import UserError
from data_pipeline.files import replaced_folder, sha256_of_file
from data_pipeline.prepared.dataset import TOKENIZER_FOLDER
from data_pipeline.prepared.integrity import check_tokenizer_copy
from data_pipeline.prompt.chat_folder import render_stored_template
from data_pipeline.text_rules import quoted
from ochat_train.checkpoint.basis import config_values
from ochat_train.checkpoint.changes import config_changes, listed
from ochat_train.checkpoint.state import (
    STATE,
    CheckpointManifest,
    best_checkpoint,
    checkpoints_dir,
    list_checkpoints,
    refuse_unsafe_pickles,
    verify,
)
from ochat_train.evaluation.results import Validation
from ochat_train.export.card import CardFacts, last_until, model_card
from ochat_train.export.layout import CARD, DEFAULT_SHARD_SIZE, EXPORT_MARK
from ochat_train.export.portable_config import write_portable_config
from ochat_train.export.provenance import find_base_model
from ochat_train.export.public_recipe import public_recipe
from ochat_train.model.base_class import base_class, load_exported, text_config
from ochat_train.runs.folder import MODEL_CONFIG_FOLDER, RunFolder, read_run_folder
from ochat_train.runs.lines import METRICS_FILE, VALIDATION_FILE, results_of
from ochat_train.runs.metrics import StepMetrics
from ochat_train.runs.processor import processor_files
from ochat_train.system.library_output import quiet_libraries
from ochat_train.system.pretrained import load_config, load_tokenizer, prompt_ids
from ochat_train.system.versions import library_versions

_PREFIX = "causal_lm."  # the trained module is PackedCausalLM; an export holds the causal LM inside it


def export(
    run_dir: Path, out: Path, *, step: int | Literal["best"] | None, max_shard_size: str, overwrite: bool = False
) -> Path:
    """Export the checkpoint that a user names: the newest (None), that of `step`, or the `best` validated one.

    overwrite: whether an earlier export in `out` is replaced; without it a folder that holds anything is a UserError.
    Otherwise as `export_checkpoint`.
    """
    _check_out(out, overwrite=overwrite)
    run = read_run_folder(run_dir)
    checkpoint = find_checkpoint(run, step)
    return export_checkpoint(run, checkpoint, out, max_shard_size=max_shard_size, overwrite=overwrite)


def export_checkpoint(
    run: RunFolder, checkpoint: Path, out: Path, *, max_shard_size: str = DEFAULT_SHARD_SIZE, overwrite: bool = False
) -> Path:
    """Write the model of a checkpoint of a run as a Hugging Face folder.

    The folder is written under another name, loaded again, and compared: every weight with the trained one, the logits,
    and the tokenizer's ids with the prepared ones. Then it gets its model card and the name `out`.

    max_shard_size: larger models are written as several files, as `5GB`. Raises UserError for a damaged checkpoint, for
    an `out` that may not be replaced, and where a comparison fails.
    """
    quiet_libraries()
    replaceable = _check_out(out, overwrite=overwrite)
    if (problem := verify(checkpoint)) is not None:
        raise UserError(checkpoint, problem, "export another step")
    check_tokenizer_copy(run.path, run.prepared)
    trained = load_model(run, checkpoint)
    with replaced_folder(out, owned=replaceable) as folder:
        _write_model(trained, folder, max_shard_size=max_shard_size)
        for file in (*(run.path / TOKENIZER_FOLDER).iterdir(), *processor_files(run.path / MODEL_CONFIG_FOLDER)):
            shutil.copyfile(file, folder / file.name)
        _verify_export(run, trained, folder)
        _write_card_and_mark(run, CheckpointManifest.load(checkpoint).step, folder)
        _set_modes(folder)
    return out


def _write_model(model: Any, folder: Path, *, max_shard_size: str) -> None:
    """Write weights and configuration so that transformers 4 reads them too."""
    # Which names of weights were converted while loading. The trained weights already had the names of the model; with
    # this list, which is then empty, they would be saved under those instead of the names that bases have on disk.
    vars(model).pop("_weight_conversions", None)
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    write_portable_config(folder, model.config)


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


def find_checkpoint(run: RunFolder, step: int | Literal["best"] | None) -> Path:
    """The newest checkpoint of a run, that of `step`, or the `best` validated one. Raises UserError where there is
    none.
    """
    available = list_checkpoints(run.path)
    if not available:
        raise UserError(f"{checkpoints_dir(run.path)}", "holds no complete checkpoint", "train first")
    if step is None:
        return available[-1]
    if step == "best":
        best = best_checkpoint(available)
        if best is None:
            raise UserError(
                "--step best", f"no checkpoint of {run.path} was validated", "set data.validation_ratio, or name a step"
            )
        return best
    by_step = {CheckpointManifest.load(folder).step: folder for folder in available}
    if step not in by_step:
        steps = ", ".join(map(str, by_step))
        raise UserError(f"--step {step}", "no such checkpoint", f"steps there: {steps}")
    return by_step[step]


def load_trained_weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    """The trained causal LM's weights by name, on the CPU, in the dtype of the forward pass."""
    refuse_unsafe_pickles(checkpoint)
    model_states = sorted((checkpoint / STATE).glob("*model_states.pt"))
    # The scan above found nothing in the pickles but tensors, containers and three classes of DeepSpeed's.
    first = torch.load(model_states[0], map_location="cpu", weights_only=False, mmap=True)
    if CheckpointManifest.load(checkpoint).recipe["deepspeed"]["zero_stage"] < 3:
        state = first["module"]
    else:
        from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

        # Stage 3 spreads the weights; the float32 master copies, rounded, are the weights of the forward pass.
        dtype = torch.bfloat16 if (first["ds_config"].get("bf16") or {}).get("enabled") else torch.float32
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):  # its progress bars
            masters = get_fp32_state_dict_from_zero_checkpoint(str(checkpoint), tag=STATE)
        state = {name: tensor.to(dtype) for name, tensor in masters.items()}
    trained = {name.removeprefix(_PREFIX): tensor for name, tensor in state.items() if name.startswith(_PREFIX)}
    empty = [name for name, tensor in trained.items() if not tensor.numel()]
    if empty or not trained:
        problem = f"holds empty weights: {', '.join(empty[:3])}" if empty else "holds no weights of a causal LM"
        raise UserError(checkpoint, problem, "export another step")
    return trained


def load_model(run: RunFolder, checkpoint: Path) -> Any:
    """The trained causal LM of a checkpoint, on the CPU, in evaluation mode."""
    import transformers

    state = load_trained_weights(checkpoint)
    folder = run.path / MODEL_CONFIG_FOLDER
    config = load_config(folder, revision=None, place=str(folder))
    changes = config_changes(CheckpointManifest.load(checkpoint).base_config, config_values(config))
    if changes:
        problem = f"is not the configuration that was trained: {listed(changes)}"
        raise UserError(folder / "config.json", problem, "change it back")
    model_class = base_class(config)
    # not load_state_dict, which would leave out what a model computes and does not save (rotary frequencies)
    model, found = model_class.from_pretrained(
        None,
        config=config,
        state_dict=state,
        dtype=next(iter(state.values())).dtype,
        output_loading_info=True,
        trust_remote_code=False,
    )
    if wrong := sorted([*found["missing_keys"], *found["unexpected_keys"]]):
        problem = f"does not hold the weights of this model: {', '.join(wrong[:3])}"
        raise UserError(checkpoint, problem, "export with the version of `transformers` that trained it")
    tokenizer = load_tokenizer(run.path / TOKENIZER_FOLDER)
    generation = transformers.GenerationConfig.from_model_config(config)
    generation.eos_token_id = tokenizer.eos_token_id
    generation.pad_token_id = tokenizer.pad_token_id
    generation.bos_token_id = tokenizer.bos_token_id
    model.generation_config = generation
    for part in {id(found): found for found in (model.config, text_config(model.config))}.values():
        part.eos_token_id = tokenizer.eos_token_id
        part.bos_token_id = tokenizer.bos_token_id
        part.pad_token_id = tokenizer.pad_token_id
    return model.eval()


def _write_card_and_mark(run: RunFolder, step: int, folder: Path) -> None:
    """Write README.md, and ochat.json: what the model was made of, and the sha256 of every file of the export."""
    recipe = public_recipe(run.recipe)
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
    )
    (folder / CARD).write_text(model_card(facts), encoding="utf-8")
    mark = {
        "step": step,
        "template": run.prepared.template,
        "inference_condition": run.prepared.inference_condition,
        "classes": [vars(row) for row in run.prepared.classes],
        "recipe": recipe,
        "versions": facts.versions,
        "files": {file.name: sha256_of_file(file) for file in sorted(folder.iterdir())},
    }
    (folder / EXPORT_MARK).write_text(json.dumps(mark, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


@torch.no_grad()
def _verify_export(run: RunFolder, trained: Any, folder: Path) -> None:
    loaded = load_exported(folder)
    expected, found = trained.state_dict(), loaded.state_dict()
    wrong = [name for name in expected.keys() | found.keys() if not _same(expected.get(name), found.get(name))]
    if wrong:
        raise UserError(folder, f"weights changed on the way to disk: {', '.join(sorted(wrong)[:5])}", "not exported")
    tokenizer, reference = load_tokenizer(folder), load_tokenizer(run.path / TOKENIZER_FOLDER)
    template = run.path / TOKENIZER_FOLDER / "chat_template.jinja"
    messages = [{"role": "user", "content": " Hello,\n world! 1,000 é🙂 "}]
    for condition in {row.condition for row in run.prepared.classes}:
        variables = {"condition": condition, "add_generation_prompt": True}
        prompt = render_stored_template(template, messages, **variables)
        ids = prompt_ids(tokenizer, messages, **variables)
        if ids != reference.backend_tokenizer.encode(prompt, add_special_tokens=False).ids:
            raise UserError(
                folder,
                f"the tokenizer gives other ids after loading (condition {quoted(condition)})",
                "not exported",
            )
        probe = torch.tensor([ids])
        if not torch.equal(trained(probe).logits, loaded(probe).logits):
            raise UserError(
                folder, f"the loaded model gives other logits (condition {quoted(condition)})", "not exported"
            )


def _same(expected: torch.Tensor | None, found: torch.Tensor | None) -> bool:
    return expected is not None and found is not None and expected.dtype == found.dtype and torch.equal(expected, found)
