"""One memory plan for all ranks of a run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from ochat_train.distributed.ranks import Ranks
from ochat_train.model.base_class import text_config, trained_parameters
from ochat_train.model.build import is_compiled
from ochat_train.model.config import model_without_weights, num_frozen_parameters
from ochat_train.planning.adapters import adapter_shape
from ochat_train.planning.memory import MemoryPlan, fastest_plan, free_gpu_bytes
from ochat_train.planning.memory_parts import ModelShape, model_shape
from ochat_train.planning.memory_text import too_little_memory
from ochat_train.recipe.recipe import Recipe


def plan_memory(recipe: Recipe, causal_lm: Any, ranks: Ranks, *, kernel: str) -> tuple[MemoryPlan, bool]:
    """The memory plan of the rank with the least free memory, for all ranks; and whether layers are compiled.

    causal_lm: the `transformers` model, with its adapter where the recipe has one. All ranks call it. Raises UserError
    where nothing fits.
    """
    is_gpu = ranks.device.type == "cuda"
    compiled = is_compiled(
        recipe.model, kernel=kernel, device=ranks.device, causal_lm=causal_lm, adapter=recipe.adapter
    )
    shape = _shape(recipe, causal_lm, compiled=compiled)
    free_bytes = _least_free_bytes(causal_lm, ranks)
    plan = fastest_plan(
        recipe, shape, num_gpus=ranks.num_ranks, free_bytes=free_bytes, compiled=compiled, is_gpu=is_gpu
    )
    if not plan.fits and recipe.model.activation_checkpointing == "auto":  # a setting by hand is tried
        raise too_little_memory(plan, num_gpus=ranks.num_ranks)
    return plan, compiled


def _shape(recipe: Recipe, causal_lm: Any, *, compiled: bool) -> ModelShape:
    """The shape of the model. With an adapter the base alone is counted as `ochat plan` counts it."""
    vocab_size = text_config(causal_lm.config).vocab_size
    base = causal_lm if recipe.adapter is None else model_without_weights(causal_lm.config)
    adapter = adapter_shape(recipe.adapter, base, vocab_size=vocab_size)
    if adapter is not None:  # with the rows of tokens that are trained
        adapter = replace(adapter, num_trained=sum(p.numel() for p in trained_parameters(causal_lm)))
    return model_shape(
        causal_lm.config,
        vocab_size=vocab_size,
        compiled=compiled,
        num_parameters=sum(parameter.numel() for parameter in base.parameters()),
        num_frozen=num_frozen_parameters(base),
        adapter=adapter,
    )


def _least_free_bytes(causal_lm: Any, ranks: Ranks) -> float:
    """Bytes of GPU memory that the run may use on the rank that has least; 0 without GPUs.

    Weights that are already in GPU memory count as free, because the plan includes them.
    """
    free_bytes = 0.0
    if ranks.device.type == "cuda":
        held = [*causal_lm.parameters(), *causal_lm.buffers()]  # weights in 4 bits are buffers
        weights = sum(tensor.numel() * tensor.element_size() for tensor in held if tensor.device == ranks.device)
        free_bytes = free_gpu_bytes(ranks.device) + weights
    least = torch.tensor(free_bytes, dtype=torch.float64, device=ranks.device)
    torch.distributed.all_reduce(least, op=torch.distributed.ReduceOp.MIN)
    return float(least)
