"""DeepSpeed: process group, configuration from the recipe, engine. The only file that configures it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from ochat_train.distributed.engine import TrainingEngine
from ochat_train.distributed.ranks import Ranks
from ochat_train.model.base_class import trained_parameters
from ochat_train.model.config import model_dtype
from ochat_train.model.packed import PackedCausalLM
from ochat_train.model.structure import decoder_layers
from ochat_train.optimizer.adamw import SmallAdamW
from ochat_train.optimizer.shards import share_weights
from ochat_train.planning.gradients import GROUP_ELEMENTS, bucket_elements, dtype_of_sums, num_backwards
from ochat_train.recipe.recipe import Recipe
from ochat_train.training.gradient_sum import GradientSum


def deepspeed_config(
    recipe: Recipe,
    *,
    num_ranks: int,
    device: torch.device,
    layer_elements: int,
    num_trained: int,
    load_universal: bool = False,
) -> dict[str, Any]:
    """DeepSpeed's configuration for a recipe; the recipe's raw `deepspeed.config` is merged over it last.

    layer_elements: parameters of the largest decoder layer. num_trained: parameters that have gradients, of an adapter
    a few. load_universal: the engine will load a universal checkpoint
    (reshard.py).
    """
    settings = recipe.deepspeed
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": _num_backwards(recipe, num_ranks),
        "gradient_clipping": recipe.optimizer.grad_clip,
        "zero_optimization": _zero_section(
            recipe, num_ranks=num_ranks, device=device, layer_elements=layer_elements, num_trained=num_trained
        ),
        "steps_per_print": 2**31,  # metrics.py reports
        "checkpoint": {"load_universal": load_universal},
    }
    if model_dtype(recipe.model, device) == torch.bfloat16:
        # Gradients of many packs are added up: in bfloat16 small ones would vanish beside the sum.
        dtype = dtype_of_sums(recipe, settings.stage, adds_up=config["gradient_accumulation_steps"] > 1)
        wide = dtype == "float32" and not _uses_gradient_sum(recipe)
        config |= {"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32" if wide else "bf16"}}
        if recipe.optimizer.states != "float32":  # bfloat16 flat tensors; SmallAdamW keeps the rest itself
            config["bf16"] |= {"bf16_master_weights_and_grads": True, "bf16_optimizer_states": True}
    return _merged(config, settings.config)


def _zero_section(
    recipe: Recipe, *, num_ranks: int, device: torch.device, layer_elements: int, num_trained: int
) -> dict[str, Any]:
    settings = recipe.deepspeed
    zero: dict[str, Any] = {"stage": settings.stage}
    if settings.stage in (1, 2):
        # Stage 1 reduces gradients where they are: in contiguous buffers it would keep a second copy of its share of
        # them.
        in_place = settings.stage == 1 and not settings.offload_optimizer
        zero |= {
            "overlap_comm": device.type == "cuda" and not (in_place and num_ranks == 1),
            "contiguous_gradients": not in_place,
            "reduce_scatter": not in_place,
            "reduce_bucket_size": bucket_elements(num_trained),
        }
    if settings.stage == 3:
        # The next layer is gathered while one computes; by default only a part of it would be, and the rest waited for.
        zero["stage3_prefetch_bucket_size"] = layer_elements
        # DeepSpeed's own linear function would replace torch's in the whole process. It adds a bias in place, into the
        # product that `matmuls` keeps, so recomputing adds it twice. It also reads a number that is different in every
        # layer: torch 2.11 would compile every layer again.
        zero["memory_efficient_linear"] = False
    if settings.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": device.type == "cuda"}
    if settings.offload_parameters:
        zero["offload_param"] = {"device": "cpu", "pin_memory": device.type == "cuda"}
    return zero


def _uses_gradient_sum(recipe: Recipe) -> bool:
    """Whether GradientSum adds up gradients. In other stages, and with an optimizer on the CPU, DeepSpeed does."""
    settings = recipe.deepspeed
    return settings.stage == 1 and not settings.offload_optimizer and recipe.train.gradient_dtype == "float32"


def _num_backwards(recipe: Recipe, num_ranks: int) -> int:
    """Micro-batches that each rank works on in a step."""
    return num_backwards(recipe, num_gpus=num_ranks, packs_per_micro_batch=recipe.train.packs_per_micro_batch or 1)


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merged(merged[key], value) if both else value
    return merged


def start_engine(
    model: PackedCausalLM,
    recipe: Recipe,
    ranks: Ranks,
    *,
    load_universal: bool = False,
    group_elements: int = GROUP_ELEMENTS,
) -> TrainingEngine:
    """The DeepSpeed engine with AdamW. `train_step` sets the learning rate before every update.

    load_universal: it will load a universal checkpoint (reshard.py). group_elements: as in `parameter_groups`.
    """
    import deepspeed
    from deepspeed.runtime.zero.utils import ZERO_SUPPORTED_OPTIMIZERS

    num_backwards = _num_backwards(recipe, ranks.num_ranks)
    is_narrow = model_dtype(recipe.model, ranks.device) == torch.bfloat16
    if is_narrow and _uses_gradient_sum(recipe) and num_backwards > 1:
        GradientSum(trained_parameters(model), num_backwards=num_backwards)
    layers = decoder_layers(model.causal_lm)
    # Gather a layer's weights at once: outside compiled code, and as often on every rank where a mixer runs its
    # modules once for each conversation.
    if recipe.deepspeed.stage == 3 and (recipe.model.compile or model.mixers is not None):
        kinds = dict.fromkeys(type(layer) for layer in layers)
        deepspeed.utils.set_z3_leaf_modules(model, list(kinds))
    layer_elements = max(sum(parameter.numel() for parameter in layer.parameters()) for layer in layers)
    config = deepspeed_config(
        recipe,
        num_ranks=ranks.num_ranks,
        device=ranks.device,
        layer_elements=layer_elements,
        num_trained=sum(parameter.numel() for parameter in trained_parameters(model)),
        load_universal=load_universal,
    )
    optimizer = _optimizer(model, recipe, ranks, group_elements=group_elements)
    if SmallAdamW not in ZERO_SUPPORTED_OPTIMIZERS:
        ZERO_SUPPORTED_OPTIMIZERS.append(SmallAdamW)
    wrapped, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    if recipe.optimizer.states != "float32":
        share_weights(wrapped)
    if recipe.deepspeed.stage == 3:
        wrapped.module.register_for_zero_3()
    engine: TrainingEngine = wrapped
    return engine


def update(engine: TrainingEngine) -> float:
    """Take the optimizer step at the end of gradient accumulation; returns the gradient norm before clipping.

    A gradient that is not finite updates nothing, on any rank: the result is not finite then, and only then.
    """
    if engine.zero_optimization() or engine.bfloat16_enabled():
        engine.step()  # DeepSpeed leaves the update out if the norm is not finite
        return float(engine.get_global_grad_norm()) if engine.was_step_applied() else math.inf
    # plain float32 without ZeRO: gradients are averaged over ranks already, and in `grad`
    gradients = [parameter.grad for parameter in engine.module.parameters() if parameter.grad is not None]
    norm = float(torch.nn.utils.get_total_norm(gradients))
    if math.isfinite(norm):
        engine.step()
        return norm
    for gradient in gradients:
        gradient.zero_()
    engine.optimizer.step = lambda: None  # AdamW would decay the weights even so; DeepSpeed must count the step
    engine.step()
    del engine.optimizer.step
    return math.inf


def _optimizer(model: torch.nn.Module, recipe: Recipe, ranks: Ranks, *, group_elements: int) -> torch.optim.Optimizer:
    settings = recipe.optimizer
    arguments: dict[str, Any] = {
        "lr": 0.0,
        "betas": tuple(settings.betas),
        "eps": settings.eps,
        "weight_decay": settings.weight_decay,
    }
    if recipe.deepspeed.offload_optimizer:
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        optimizer: torch.optim.Optimizer = DeepSpeedCPUAdam(trained_parameters(model), adamw_mode=True, **arguments)
        return optimizer
    parameters = trained_parameters(model)
    in_groups = recipe.deepspeed.stage in (1, 2)
    groups = parameter_groups(parameters, most_elements=group_elements) if in_groups else [parameters]
    is_gpu = ranks.device.type == "cuda"
    named = [{"params": group} for group in groups]
    if settings.states != "float32":
        part = ranks.rank if recipe.deepspeed.stage else 0
        return SmallAdamW(named, states=settings.states, seed=recipe.seed, part=part, compiled=is_gpu, **arguments)
    return torch.optim.AdamW(named, fused=is_gpu, **arguments)


def parameter_groups(
    parameters: list[torch.nn.Parameter], *, most_elements: int = GROUP_ELEMENTS
) -> list[list[torch.nn.Parameter]]:
    """Parameters in order, in groups of at most `most_elements` (or one parameter that is larger): DeepSpeed makes a
    float32 copy of a group's gradients.
    """
    groups: list[list[torch.nn.Parameter]] = [[]]
    size = 0
    for parameter in parameters:
        if groups[-1] and size + parameter.numel() > most_elements:
            groups.append([])
            size = 0
        groups[-1].append(parameter)
        size += parameter.numel()
    return groups
