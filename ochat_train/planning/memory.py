"""What fits into GPU memory, decided before a run: ZeRO stage, activation checkpointing, packs per micro-batch.

All from shapes, so that `ochat plan` says the same without a GPU. docs/performance.md compares it with measured peaks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch

from data_pipeline.errors import UserError
from data_pipeline.plan.plan import num_micro_batches
from ochat_train.model.config import model_dtype
from ochat_train.model.loss import CHUNK_TOKENS
from ochat_train.recipe.sections import Recipe

GIB = 2**30
BUCKET_ELEMENTS = 200_000_000  # what DeepSpeed reduces over GPUs at once
GROUP_ELEMENTS = 500_000_000  # parameters that the optimizer updates at once
_USABLE = 0.97  # of the free memory; the rest is lost between blocks of the allocator
_NCCL_BYTES = 1.0 * GIB  # buffers of the communication library, outside of the allocator
_MOST_TOKENS = 16_384  # of a micro-batch: larger ones are not faster
# Cost of a setting as a share of a step in bfloat16; docs/performance.md says what was measured.
_COST_OF_FULL = 0.22  # one layer recomputed, of that layer's time
_COST_OF_NONE = 0.01  # compiled: writing and reading what `matmuls` recomputes costs as much as recomputing it
# Reducing and adding up gradients and gathering weights in every micro-batch; stages below 2 only add up.
_COST_OF_STAGE = {0: 0.0, 1: 0.0, 2: 0.12, 3: 0.19}
_TOKENS_PER_SUM = {
    "float32": 430,
    "bfloat16": 215,
}  # adding up takes as long as computing so many tokens, whatever the model
_FLOAT8_COSTS = 1.33  # the same costs as multiples of those shares: a step in float8 takes three quarters of the time


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """What the memory of a model depends on. layer_bytes: by `activation_checkpointing`, bytes kept per token and layer
    in 16-bit precision.
    """

    num_parameters: int
    num_layers: int
    hidden: int
    intermediate: int
    vocab_size: int
    layer_bytes: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """A decided setting and what it needs.

    checkpointing: one of `none`, `matmuls`, `full` per layer. sum_dtype: `dtype_of_sums`. parts: bytes by name. fits:
    whether there is so much memory.
    """

    zero_stage: int
    checkpointing: tuple[str, ...]
    packs_per_micro_batch: int
    sum_dtype: str
    parts: dict[str, float]
    fits: bool

    @property
    def total(self) -> float:
        """Bytes in the backward pass or in the update, whichever needs more."""
        return sum(self.parts.values())

    @property
    def checkpointing_text(self) -> str:
        """As a recipe writes it."""
        num_full = self.checkpointing.count("full")
        return self.checkpointing[-1] if num_full in (0, len(self.checkpointing)) else f"layers: {num_full}"


@dataclass(frozen=True, kw_only=True)
class StepCosts:
    """What the costs of a setting depend on, besides the setting."""

    pack_length_tokens: int
    compiled: bool
    float8: bool

    @classmethod
    def of(cls, recipe: Recipe, *, compiled: bool) -> StepCosts:
        """For the steps of a recipe."""
        return cls(pack_length_tokens=recipe.train.pack_length_tokens, compiled=compiled, float8=recipe.model.float8)

    def relative_seconds(self, plan: MemoryPlan) -> float:
        """Time of a step under a setting, as a multiple of a step that recomputes, reduces and adds up nothing."""
        num = len(plan.checkpointing)
        cost = _COST_OF_FULL * plan.checkpointing.count("full") / num + _COST_OF_STAGE[plan.zero_stage]
        cost += _COST_OF_NONE * plan.checkpointing.count("none" if self.compiled else "matmuls") / num
        if plan.zero_stage <= 1:
            cost += _TOKENS_PER_SUM[plan.sum_dtype] / (self.pack_length_tokens * plan.packs_per_micro_batch)
        return 1.0 + cost * (_FLOAT8_COSTS if self.float8 else 1.0)


def model_shape(config: Any, *, vocab_size: int, num_parameters: int, compiled: bool) -> ModelShape:
    """Shapes from a `transformers` config.

    Kept by a compiled layer in 16-bit precision (seen on Mistral shapes: 92 and 136 KiB): the layer's input, queries,
    keys, values, the attention's output, its projection and the two MLP projections; with `none` also both norms and
    the MLP's product. Uncompiled layers keep about twice that.
    """
    hidden, heads = config.hidden_size, config.num_attention_heads
    intermediate = getattr(config, "intermediate_size", None) or 4 * hidden
    head_dim = getattr(config, "head_dim", None) or hidden // heads
    key_heads = getattr(config, "num_key_value_heads", None) or heads
    matmuls = 2 * (2 * hidden + 2 * heads * head_dim + 2 * key_heads * head_dim + 2 * intermediate)
    none = matmuls + 2 * (2 * hidden + intermediate)
    return ModelShape(
        num_parameters=num_parameters,
        num_layers=config.num_hidden_layers,
        hidden=hidden,
        intermediate=intermediate,
        vocab_size=vocab_size,
        layer_bytes={"full": 2 * hidden, "matmuls": matmuls, "none": none if compiled else 2 * none},
    )


def memory_parts(
    recipe: Recipe,
    shape: ModelShape,
    *,
    num_gpus: int,
    zero_stage: int,
    checkpointing: tuple[str, ...],
    packs_per_micro_batch: int,
) -> dict[str, float]:
    """Bytes of GPU memory by part, for a GPU run (bfloat16 unless the recipe says float32).

    DeepSpeed: 2 bytes a parameter for weights, 12 for float32 masters and two AdamW moments; gradients are summed whole
    on each GPU up to stage 1, in shards from stage 2.
    """
    settings = recipe.deepspeed
    wide = recipe.model.precision == "float32"
    width = 4 if wide else 2  # bytes of a number in the model's dtype
    shard = {
        name: num_gpus if zero_stage >= least else 1
        for name, least in (("optimizer", 1), ("gradients", 2), ("weights", 3))
    }
    num = shape.num_parameters
    tokens = recipe.train.pack_length_tokens * packs_per_micro_batch
    kept = sum(shape.layer_bytes[kind] for kind in checkpointing) * tokens * width / 2
    recomputed = shape.layer_bytes["none"] * tokens * width / 2 if "full" in checkpointing else 0.0
    head = shape.vocab_size * (shape.hidden * (4 + 2 * width) + min(CHUNK_TOKENS, tokens) * 8)  # logits, softmax
    working = 4 * width * (shape.intermediate + shape.hidden) * tokens
    buckets = 2 * width * BUCKET_ELEMENTS if num_gpus > 1 and zero_stage else 0
    gathered = 2 * num / shape.num_layers * 2 * width if zero_stage == 3 else 0
    optimizer = 0.0 if settings.offload_optimizer else num * (8 if wide else 12) / shard["optimizer"]
    adds_up = _adds_up(recipe, num_gpus, packs_per_micro_batch)
    gradients = num * _gradient_bytes(recipe, zero_stage, adds_up=adds_up) / shard["gradients"]
    group = min(num, GROUP_ELEMENTS) / (num_gpus if zero_stage else 1)
    in_update = 8.0 * group + (2.0 * num if zero_stage <= 1 and not wide else gradients)
    activations = kept + recomputed + head + working
    return {
        "weights": 0.0 if settings.offload_parameters else num * width / shard["weights"],
        "gradients": gradients,
        "optimizer": optimizer,
        "activations": max(activations, in_update - gradients),
        "buffers": float(buckets + gathered),
    }


def _adds_up(recipe: Recipe, num_gpus: int, packs_per_micro_batch: int) -> bool:
    """Whether a step has several micro-batches."""
    return num_micro_batches(recipe.train.bins_per_step, num_gpus) > packs_per_micro_batch


def dtype_of_sums(recipe: Recipe, zero_stage: int, *, adds_up: bool) -> str:
    """Dtype in which gradients are added up. adds_up: whether a step has several micro-batches.

    Of a bfloat16 model the recipe's, but float32 where bfloat16 takes as many bytes.
    """
    if recipe.model.precision == "float32" or _is_kept_twice(recipe, zero_stage, adds_up=adds_up):
        return "float32"
    return recipe.train.gradient_dtype


def _is_kept_twice(recipe: Recipe, zero_stage: int, *, adds_up: bool) -> bool:
    """Whether DeepSpeed keeps the micro-batch's gradient beside a sum that has the model's dtype."""
    return zero_stage == 2 and adds_up and not recipe.deepspeed.offload_optimizer


def _gradient_bytes(recipe: Recipe, zero_stage: int, *, adds_up: bool) -> int:
    """Bytes a parameter, before they are shared by GPUs."""
    if recipe.model.precision == "float32":
        return 8 if _is_kept_twice(recipe, zero_stage, adds_up=adds_up) else 4
    one_gradient = zero_stage <= 1 and not adds_up
    return 2 if one_gradient or dtype_of_sums(recipe, zero_stage, adds_up=adds_up) == "bfloat16" else 4


def fastest_plan(
    recipe: Recipe, shape: ModelShape, *, num_gpus: int, free_bytes: float, compiled: bool, is_gpu: bool
) -> MemoryPlan:
    """The fastest setting that needs no more than `free_bytes`, or the smallest; what the recipe decides is kept."""
    plans = possible_plans(recipe, shape, num_gpus=num_gpus, free_bytes=free_bytes, is_gpu=is_gpu)
    return fastest_of(plans, StepCosts.of(recipe, compiled=compiled))


def possible_plans(
    recipe: Recipe, shape: ModelShape, *, num_gpus: int, free_bytes: float, is_gpu: bool
) -> list[MemoryPlan]:
    """Every setting that the recipe leaves open, with what it needs."""
    budget = free_bytes * _USABLE - (_NCCL_BYTES if num_gpus > 1 else 0.0)
    plans = []
    for stage, checkpointing, packs in product(
        _stages(recipe, is_gpu, num_gpus),
        _checkpointings(recipe, shape.num_layers, is_gpu),
        _packs(recipe, num_gpus, is_gpu),
    ):
        setting: dict[str, Any] = {"zero_stage": stage, "checkpointing": checkpointing, "packs_per_micro_batch": packs}
        parts = memory_parts(recipe, shape, num_gpus=num_gpus, **setting)
        sum_dtype = dtype_of_sums(recipe, stage, adds_up=_adds_up(recipe, num_gpus, packs))
        fits = not is_gpu or sum(parts.values()) <= budget
        plans.append(MemoryPlan(**setting, sum_dtype=sum_dtype, parts=parts, fits=fits))
    return plans


def fastest_of(plans: Sequence[MemoryPlan], costs: StepCosts) -> MemoryPlan:
    """The fastest that fits (of equally fast ones the smallest), or the smallest where none does."""
    fitting = [plan for plan in plans if plan.fits]
    if not fitting:
        return min(plans, key=lambda plan: plan.total)
    return min(fitting, key=lambda plan: (costs.relative_seconds(plan), plan.total))


def too_little_memory(plan: MemoryPlan, *, num_gpus: int) -> UserError:
    """The error for a recipe of which not even the smallest setting, `plan`, fits."""
    return UserError(
        "GPU memory",
        f"the least that this recipe needs on {num_gpus} GPU(s) is {plan.total / GIB:.1f} GiB each "
        f"({parts_text(plan.parts)}), more than is free",
        "use more GPUs, deepspeed.offload_optimizer: true, train.gradient_dtype: bfloat16 or a shorter "
        "train.pack_length_tokens",
    )


def resolve(recipe: Recipe, plan: MemoryPlan, *, compiled: bool) -> Recipe:
    """The recipe with everything decided that it left open."""
    num_full = plan.checkpointing.count("full")
    checkpointing = {"layers": num_full} if 0 < num_full < len(plan.checkpointing) else plan.checkpointing[-1]
    return recipe.model_copy(
        update={
            "model": recipe.model.model_copy(update={"activation_checkpointing": checkpointing, "compile": compiled}),
            "train": recipe.train.model_copy(update={"packs_per_micro_batch": plan.packs_per_micro_batch}),
            "deepspeed": recipe.deepspeed.model_copy(update={"zero_stage": plan.zero_stage}),
        }
    )


def parts_text(parts: dict[str, float]) -> str:
    """Parts in GiB, for a message."""
    return ", ".join(f"{name} {size / GIB:.1f}" for name, size in parts.items())


def free_gpu_bytes(device: torch.device) -> float:
    """Bytes that a process could still take on its GPU, those that its allocator holds unused included."""
    free, _ = torch.cuda.mem_get_info(device)
    return float(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))


def _stages(recipe: Recipe, is_gpu: bool, num_gpus: int) -> list[int]:
    settings = recipe.deepspeed
    dtype = model_dtype(recipe.model, torch.device("cuda" if is_gpu else "cpu"))
    if settings.zero_stage == 0 and dtype == torch.bfloat16:
        raise UserError(
            "deepspeed.zero_stage",
            "0 cannot be used with a bfloat16 model, as DeepSpeed keeps its float32 sums of gradients from stage 1 on",
            "use 1, which needs less memory and takes no longer, or leave it out",
        )
    if settings.zero_stage is not None:
        return [settings.zero_stage]
    if not is_gpu or settings.offload_optimizer:
        return [2]
    return [1] if num_gpus == 1 else [1, 2, 3]


def _checkpointings(recipe: Recipe, num_layers: int, is_gpu: bool) -> Iterator[tuple[str, ...]]:
    wanted = recipe.model.activation_checkpointing
    if isinstance(wanted, dict):
        num_full = min(wanted["layers"], num_layers)
        yield ("full",) * num_full + ("matmuls",) * (num_layers - num_full)
    elif wanted != "auto":
        yield (wanted,) * num_layers
    elif not is_gpu:
        yield ("none",) * num_layers
    else:
        yield ("none",) * num_layers
        for num_full in range(num_layers + 1):
            yield ("full",) * num_full + ("matmuls",) * (num_layers - num_full)


def _packs(recipe: Recipe, num_gpus: int, is_gpu: bool) -> list[int]:
    per_gpu = num_micro_batches(recipe.train.bins_per_step, num_gpus)
    wanted = recipe.train.packs_per_micro_batch
    if wanted is not None:
        if per_gpu % wanted:
            raise UserError(
                "train.packs_per_micro_batch",
                f"{wanted} does not divide the {per_gpu} packs that each of {num_gpus} GPU(s) works on in a step "
                "(train.tokens_per_step / train.pack_length_tokens / GPUs)",
                "use a divisor of it",
            )
        return [wanted]
    most = max(1, _MOST_TOKENS // recipe.train.pack_length_tokens) if is_gpu else 1
    return [packs for packs in range(1, most + 1) if per_gpu % packs == 0]


def memory_text(plan: MemoryPlan) -> str:
    """One line about the plan, for the start of a run."""
    return (
        f"memory per GPU {plan.total / GIB:.1f} GiB ({parts_text(plan.parts)}): activation_checkpointing "
        f"{plan.checkpointing_text}, {plan.packs_per_micro_batch} pack(s) per micro-batch, gradients in "
        f"{plan.sum_dtype}{'' if plan.fits else '; computed to be more than is free'}"
    )


def out_of_memory_text(plan: MemoryPlan, recipe: Recipe, error: BaseException) -> str:
    """What was planned, what happened, and the next safer setting."""
    num, num_full = len(plan.checkpointing), plan.checkpointing.count("full")
    if plan.packs_per_micro_batch > 1:
        safer = "train.packs_per_micro_batch: 1"
    elif num_full < num:
        more = min(num, num_full + max(1, num // 8))
        safer = "model.activation_checkpointing: " + ("full" if more == num else f"{{layers: {more}}}")
    elif plan.zero_stage < 3:
        safer = f"deepspeed.zero_stage: {plan.zero_stage + 1}"
    else:
        safer = "deepspeed.offload_optimizer: true, or more GPUs"
    return (
        f"GPU memory: more was needed than the {plan.total / GIB:.1f} GiB planned ({parts_text(plan.parts)}); "
        f"next safer: {safer}, and start again ({str(error).splitlines()[0][:300]})"
    )
