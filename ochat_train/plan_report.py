"""What a recipe would do, without doing it: the numbers of `ochat plan`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from data_pipeline.dataset import PreparedSplit
from data_pipeline.plan import num_micro_batches
from ochat_train.memory_plan import GIB, MemoryPlan, fastest_plan, model_shape
from ochat_train.model import load_base_config
from ochat_train.prepare_data import check_prepared
from ochat_train.recipe import Recipe
from ochat_train.train import peak_learning_rate, training_plan

_CONTEXT_GIB = 1.0  # of a GPU's memory, for the CUDA context and libraries


def plan_report(recipe: Recipe, *, num_gpus: int, gpu_memory_gib: float) -> dict[str, Any]:
    """The document of `ochat plan --json`, from the prepared dataset and the base's configuration alone."""
    manifest = check_prepared(recipe)
    split = PreparedSplit(Path(recipe.data.prepared_dir), "train")
    plan = training_plan(recipe, split)
    per_rank = num_micro_batches(recipe.train.bins_per_step, num_gpus)
    model = model_without_weights(load_base_config(recipe.model, manifest.vocab_size))
    memory = memory_plan(recipe, model, vocab_size=manifest.vocab_size, num_gpus=num_gpus, gpu_memory_gib=gpu_memory_gib)
    return {
        "classes": [vars(row) for row in manifest.classes],
        "steps_per_epoch": plan.steps_per_epoch,
        "num_steps": plan.num_steps,
        "tokens_per_step": recipe.train.tokens_per_step,
        "bins_per_step": recipe.train.bins_per_step,
        "packs_per_gpu": per_rank,
        "empty_packs_per_step": per_rank * num_gpus - recipe.train.bins_per_step,
        "packing_efficiency": plan.packing_efficiency,
        "conversations_per_epoch": len(split),
        "max_conversations_per_pack": plan.max_conversations_per_pack,
        "learning_rate": peak_learning_rate(recipe, manifest),
        "loss_denominator": recipe.train.loss_denominator,
        "fits": memory.fits,
        "zero_stage": memory.zero_stage,
        "activation_checkpointing": memory.checkpointing_text,
        "packs_per_micro_batch": memory.packs_per_micro_batch,
        "memory_gib_per_gpu": {**{name: _gib(size) for name, size in memory.parts.items()}, "total": _gib(memory.total)},
    }


def memory_plan(recipe: Recipe, model: Any, *, vocab_size: int, num_gpus: int, gpu_memory_gib: float) -> MemoryPlan:
    """What a run on such GPUs would decide, with compiled layers. model: the base, without weights."""
    compiled = recipe.model.compile is not False
    parameters = num_parameters(model, vocab_size)
    shape = model_shape(model.config, vocab_size=vocab_size, num_parameters=parameters, compiled=compiled)
    free = (gpu_memory_gib - _CONTEXT_GIB) * GIB
    return fastest_plan(recipe, shape, num_gpus=num_gpus, free_bytes=free, compiled=compiled, is_gpu=True)


def _gib(size: float) -> float:
    return round(size / GIB, 2)


def model_without_weights(config: Any) -> Any:
    """The causal LM of a `transformers` config on the meta device: shapes alone."""
    import transformers

    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(config)


def num_parameters(model: Any, vocab_size: int) -> int:
    """Parameters of a model with rows for `vocab_size` tokens."""
    config = model.config
    count = sum(parameter.numel() for parameter in model.parameters())
    missing_rows = max(0, vocab_size - config.vocab_size)
    tables = 1 if config.tie_word_embeddings else 2
    return int(count + missing_rows * config.hidden_size * tables)
