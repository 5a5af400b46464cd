"""What a recipe would do, without doing it: the numbers of `ochat plan`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from data_pipeline.dataset import PreparedSplit
from data_pipeline.plan import num_micro_batches
from ochat_train.model import load_base_config
from ochat_train.prepare_data import check_prepared
from ochat_train.recipe import Recipe
from ochat_train.train import peak_learning_rate, training_plan

_GIB = 2**30


def plan_report(recipe: Recipe, *, num_gpus: int) -> dict[str, Any]:
    """The document of `ochat plan --json`, from the prepared dataset and the base's configuration alone."""
    manifest = check_prepared(recipe)
    split = PreparedSplit(Path(recipe.data.prepared_dir), "train")
    plan = training_plan(recipe, split)
    per_rank = num_micro_batches(recipe.train.bins_per_step, num_gpus)
    return {
        "steps_per_epoch": plan.steps_per_epoch,
        "num_steps": plan.num_steps,
        "tokens_per_step": recipe.train.tokens_per_step,
        "bins_per_step": recipe.train.bins_per_step,
        "micro_batches_per_gpu": per_rank,
        "idle_micro_batches_per_step": per_rank * num_gpus - recipe.train.bins_per_step,
        "packing_efficiency": plan.packing_efficiency,
        "conversations_per_epoch": len(split),
        "max_conversations_per_pack": plan.max_conversations_per_pack,
        "learning_rate": peak_learning_rate(recipe, manifest),
        "loss_denominator": recipe.train.loss_denominator,
        "memory_gib_per_gpu": memory_gib_per_gpu(recipe, vocab_size=manifest.vocab_size, num_gpus=num_gpus),
    }


def memory_gib_per_gpu(recipe: Recipe, *, vocab_size: int, num_gpus: int) -> dict[str, float]:
    """GiB of GPU memory by part, computed from shapes for a GPU run (bfloat16 unless the recipe says float32).

    Parameters, gradients and optimizer states follow the ZeRO stage (DeepSpeed: 2 bytes a parameter for weights, 4 for
    float32 gradient sums, 12 for float32 masters and two AdamW moments). Activations are an estimate: 34 bytes per
    token, layer and hidden unit without checkpointing (Korthikanti et al. 2022, without the attention matrix, which
    flash kernels never store), 2 bytes with `full`.
    """
    config = load_base_config(recipe.model, vocab_size)
    num_parameters, hidden, layers = _num_parameters(config, vocab_size), config.hidden_size, config.num_hidden_layers
    stage, settings = recipe.deepspeed.zero_stage, recipe.deepspeed
    weight_bytes = 4 if recipe.model.precision == "float32" else 2
    shard = {name: num_gpus if stage >= least else 1 for name, least in (("optimizer", 1), ("gradients", 2), ("parameters", 3))}
    optimizer_bytes = 0 if settings.offload_optimizer else 12 if weight_bytes == 2 else 8
    tokens = recipe.train.pack_length_tokens
    per_unit = 2 if recipe.model.activation_checkpointing == "full" else 34
    recomputed_layer = tokens * hidden * 34 if recipe.model.activation_checkpointing == "full" else 0
    parts = {
        "parameters": 0 if settings.offload_parameters else num_parameters * weight_bytes / shard["parameters"],
        "gradients": num_parameters * 4 / shard["gradients"],
        "optimizer": num_parameters * optimizer_bytes / shard["optimizer"],
        "activations_estimate": tokens * hidden * layers * per_unit + recomputed_layer,
        "loss_head": vocab_size * hidden * 4 + 2 * 2048 * vocab_size * 4,
    }
    rounded = {name: round(value / _GIB, 2) for name, value in parts.items()}
    return {**rounded, "total": round(sum(parts.values()) / _GIB, 2)}


def _num_parameters(config: Any, vocab_size: int) -> int:
    import transformers

    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    count = sum(parameter.numel() for parameter in model.parameters())
    missing_rows = max(0, vocab_size - config.vocab_size)
    tables = 1 if config.tie_word_embeddings else 2
    return int(count + missing_rows * config.hidden_size * tables)
