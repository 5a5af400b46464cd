"""The trained causal LM of a checkpoint, on the CPU; a model with an adapter is merged into its base."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import torch

from data_pipeline.errors import UserError
from data_pipeline.json_files import read_json_object
from data_pipeline.prepared.dataset import TOKENIZER_FOLDER
from data_pipeline.text_rules import some_names
from ochat_train.checkpoint.basis import config_values
from ochat_train.checkpoint.changes import config_changes, listed
from ochat_train.checkpoint.choose import reading
from ochat_train.checkpoint.state import STATE, CheckpointManifest, refuse_unsafe_pickles
from ochat_train.export.adapted import AdaptedModel, Differences, Logits, load_adapted, merge
from ochat_train.model.base_class import text_config
from ochat_train.model.config import model_without_weights
from ochat_train.runs.folder import MODEL_CONFIG_FOLDER, RunFolder
from ochat_train.system.answer_text import control_ids
from ochat_train.system.pretrained import load_config, load_tokenizer

_PREFIX = "causal_lm."  # the trained module is PackedCausalLM; an export holds the causal LM inside it


def load_model(run: RunFolder, checkpoint: Path, *, base: str | None = None) -> Any:
    """The trained causal LM of a checkpoint, on the CPU, in evaluation mode.

    base: where the base of a run with an adapter is now; None for where the run had it.
    """
    return load_merged(run, checkpoint, base=base)[0]


def load_merged(
    run: RunFolder, checkpoint: Path, *, base: str | None = None, logits: Logits | None = None
) -> tuple[Any, Differences | None]:
    """As `load_model`, and what merging an adapter did to the logits that `logits` computes; None without one."""
    if run.recipe.adapter is None:
        return _load_whole(run, checkpoint), None
    adapted = load_with_adapter(run, checkpoint, base=base)
    found = merge(adapted, logits)
    set_generation(run, adapted.causal_lm, adapted.causal_lm.config)
    return adapted.causal_lm.eval(), found


def load_with_adapter(run: RunFolder, checkpoint: Path, *, base: str | None) -> AdaptedModel:
    """The model of a run with an adapter, not merged."""
    manifest, state = _read(checkpoint)
    return load_adapted(run, checkpoint, manifest, state, base=base)


def _read(checkpoint: Path) -> tuple[CheckpointManifest, dict[str, torch.Tensor]]:
    """All that is read of a checkpoint, which may be deleted from then on: weights that are mapped stay readable."""
    with reading(checkpoint):
        return CheckpointManifest.load(checkpoint), load_trained_weights(checkpoint)


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
        problem = f"holds empty weights: {some_names(empty)}" if empty else "holds no weights of a causal LM"
        raise UserError(checkpoint, problem, "export another step")
    return trained


def _load_whole(run: RunFolder, checkpoint: Path) -> Any:
    """The causal LM of a run that trained all weights."""
    manifest, state = _read(checkpoint)
    folder = run.path / MODEL_CONFIG_FOLDER
    config = load_config(folder, revision=None, place=str(folder))
    changes = config_changes(manifest.base_config, config_values(config))
    if changes:
        problem = f"is not the configuration that was trained: {listed(changes)}"
        raise UserError(folder / "config.json", problem, "change it back")
    # not load_state_dict, which would leave out what a model computes and does not save (rotary frequencies)
    model, found = type(model_without_weights(config)).from_pretrained(
        None,
        config=config,
        state_dict=state,
        dtype=next(iter(state.values())).dtype,
        output_loading_info=True,
        trust_remote_code=False,
    )
    if wrong := sorted([*found["missing_keys"], *found["unexpected_keys"]]):
        problem = f"does not hold the weights of this model: {some_names(wrong)}"
        raise UserError(checkpoint, problem, "export with the version of `transformers` that trained it")
    set_generation(run, model, config)
    return model.eval()


def set_generation(run: RunFolder, model: Any, config: Any) -> None:
    """Give a model what engines need to know: greedy where a request says nothing, the control tokens of the run's
    tokenizer, which generating begins and ends with, and the tokens that ended the base's own answers.
    """
    import transformers

    tokenizer = load_tokenizer(run.path / TOKENIZER_FOLDER)
    generation = transformers.GenerationConfig.from_model_config(config)
    ends = _ends_of_answers(run, tokenizer)
    generation.do_sample = False
    generation.eos_token_id = ends if len(ends) > 1 else tokenizer.eos_token_id
    generation.pad_token_id = tokenizer.pad_token_id
    generation.bos_token_id = tokenizer.bos_token_id
    model.generation_config = generation
    for part in {id(found): found for found in (model.config, text_config(model.config))}.values():
        part.eos_token_id = tokenizer.eos_token_id
        part.bos_token_id = tokenizer.bos_token_id
        # whoever trains the export further gives the row of this token no gradient; generating does not read it
        part.pad_token_id = None if tokenizer.pad_token_id in ends else tokenizer.pad_token_id


def _ends_of_answers(run: RunFolder, tokenizer: Any) -> list[int]:
    """The end of turn, and what the base's generation_config.json names, as far as it is a control token.

    A base that was trained to end its texts with another token may still do so after an answer. A number that is an
    ordinary token here (a default of a model's class, for example) must not end one.
    """
    path = run.path / MODEL_CONFIG_FOLDER / "generation_config.json"
    named = read_json_object(path).get("eos_token_id") if path.is_file() else None
    controls = control_ids(tokenizer)
    found = [token for token in (named if isinstance(named, list) else [named]) if token in controls]
    return list(dict.fromkeys([tokenizer.eos_token_id, *found]))
