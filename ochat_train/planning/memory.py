"""What fits into GPU memory, decided before a run: ZeRO stage, activation checkpointing, packs per micro-batch.

`ochat plan` gives the same answer without a GPU: `memory_parts.py` needs only shapes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import torch

from data_pipeline.errors import UserError
from data_pipeline.plan.plan import num_micro_batches
from ochat_train.model.config import model_dtype
from ochat_train.planning.costs import COSTS
from ochat_train.planning.gradients import adds_up_gradients, dtype_of_sums
from ochat_train.planning.memory_parts import MemoryParts, MemorySetting, ModelShape, memory_parts
from ochat_train.recipe.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class MemoryPlan(MemorySetting):
    """A setting and the memory that it needs. fits: whether that is free."""

    parts: MemoryParts
    fits: bool

    @property
    def total(self) -> float:
        """Bytes of all parts."""
        return self.parts.total


@dataclass(frozen=True, kw_only=True)
class StepCosts:
    """What the time of a step depends on, besides the setting.

    trained_ratio: `ModelShape.trained_ratio`; below 1 with an adapter.
    """

    pack_length_tokens: int
    compiled: bool
    float8: bool
    trained_ratio: float = 1.0

    @classmethod
    def of(cls, recipe: Recipe, *, compiled: bool, trained_ratio: float = 1.0) -> StepCosts:
        """For the steps of a recipe."""
        return cls(
            pack_length_tokens=recipe.train.pack_length_tokens,
            compiled=compiled,
            float8=recipe.model.float8,
            trained_ratio=trained_ratio if recipe.adapter is not None else 1.0,
        )

    def relative_seconds(self, setting: MemorySetting) -> float:
        """Time of a step under a setting, as a multiple of a step that recomputes, reduces and adds up nothing."""
        num = len(setting.checkpointing)
        cost = COSTS["full"] * setting.checkpointing.count("full") / num
        cost += self._stage_cost(setting.zero_stage)
        has_adapter = self.trained_ratio < 1.0
        if not has_adapter or not self.compiled:
            cost += COSTS["none"] * setting.checkpointing.count("none" if self.compiled else "matmuls") / num
        if setting.zero_stage <= 1 and self.trained_ratio == 1.0:  # adding up so few gradients takes no time
            cost += COSTS[setting.sum_dtype] / (self.pack_length_tokens * setting.packs_per_micro_batch)
        if self.float8:
            return 1.0 + cost * COSTS["float8"]
        if not has_adapter:
            return 1.0 + cost
        again = COSTS["adapter_matmuls"] * setting.checkpointing.count("matmuls") / num if self.compiled else 0.0
        return 1.0 + cost * COSTS["frozen"] + again

    def _stage_cost(self, zero_stage: int) -> float:
        """Gradients are reduced of what is trained, weights are gathered of the whole model."""
        if zero_stage < 3:
            return COSTS[f"stage_{zero_stage}"] * self.trained_ratio
        gathering = COSTS["stage_3"] - COSTS["stage_2"]
        return gathering + COSTS["stage_2"] * self.trained_ratio


def fastest_plan(
    recipe: Recipe, shape: ModelShape, *, num_gpus: int, free_bytes: float, compiled: bool, is_gpu: bool
) -> MemoryPlan:
    """The fastest setting that fits into `free_bytes`, or the smallest if none does. The recipe's decisions are kept.

    compiled: whether decoder layers are. Raises UserError for a setting of the recipe that cannot be used.
    """
    plans = possible_plans(recipe, shape, num_gpus=num_gpus, free_bytes=free_bytes, is_gpu=is_gpu)
    return fastest_of(plans, StepCosts.of(recipe, compiled=compiled, trained_ratio=shape.trained_ratio))


def possible_plans(
    recipe: Recipe, shape: ModelShape, *, num_gpus: int, free_bytes: float, is_gpu: bool
) -> list[MemoryPlan]:
    """Every setting that the recipe allows, with the memory that it needs."""
    budget = free_bytes * COSTS["usable_ratio"] - (COSTS["nccl_bytes"] if num_gpus > 1 else 0.0)
    plans = []
    for stage, checkpointing, packs in product(
        _stages(recipe, is_gpu, num_gpus),
        _checkpointings(recipe, shape.num_layers, is_gpu),
        _packs(recipe, num_gpus, is_gpu),
    ):
        setting = MemorySetting(
            zero_stage=stage,
            checkpointing=checkpointing,
            packs_per_micro_batch=packs,
            sum_dtype=dtype_of_sums(
                recipe, stage, adds_up=adds_up_gradients(recipe, num_gpus=num_gpus, packs_per_micro_batch=packs)
            ),
            states=recipe.optimizer.states,
            adapter=None if recipe.adapter is None else recipe.adapter.type,
            offloaded=recipe.deepspeed.offload_optimizer,
            checkpointing_is_set=recipe.model.activation_checkpointing != "auto",
        )
        parts = memory_parts(recipe, shape, setting, num_gpus=num_gpus)
        plans.append(MemoryPlan(**vars(setting), parts=parts, fits=not is_gpu or parts.total <= budget))
    return plans


def fastest_of(plans: Sequence[MemoryPlan], costs: StepCosts) -> MemoryPlan:
    """The fastest plan that fits (of equally fast ones the smallest), or the smallest if none fits."""
    fitting = [plan for plan in plans if plan.fits]
    if not fitting:
        return min(plans, key=lambda plan: plan.total)
    return min(fitting, key=lambda plan: (costs.relative_seconds(plan), plan.total))


def resolve(recipe: Recipe, plan: MemoryPlan, *, compiled: bool) -> Recipe:
    """The recipe with the plan's settings instead of `auto` and null."""
    num_full = plan.checkpointing.count("full")
    checkpointing = {"layers": num_full} if 0 < num_full < len(plan.checkpointing) else plan.checkpointing[-1]
    return recipe.model_copy(
        update={
            "model": recipe.model.model_copy(update={"activation_checkpointing": checkpointing, "compile": compiled}),
            "train": recipe.train.model_copy(update={"packs_per_micro_batch": plan.packs_per_micro_batch}),
            "deepspeed": recipe.deepspeed.model_copy(update={"zero_stage": plan.zero_stage}),
        }
    )


def free_gpu_bytes(device: torch.device) -> float:
    """Bytes that this process can still use on its GPU, unused blocks of its allocator included."""
    free, _ = torch.cuda.mem_get_info(device)
    return float(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))


def _stages(recipe: Recipe, is_gpu: bool, num_gpus: int) -> list[int]:
    settings = recipe.deepspeed
    dtype = model_dtype(recipe.model, torch.device("cuda" if is_gpu else "cpu"))
    if settings.zero_stage == 0 and dtype == torch.bfloat16:
        raise UserError(
            "deepspeed.zero_stage",
            "0 cannot be used with a bfloat16 model, because DeepSpeed keeps float32 sums only from stage 1 on",
            "use 1, which needs less memory and takes no longer, or leave it out",
        )
    if settings.zero_stage is not None:
        return [settings.zero_stage]
    if not is_gpu or settings.offload_optimizer:
        return [2]
    if num_gpus == 1:
        return [1]
    is_quantised = recipe.adapter is not None and recipe.adapter.type == "qlora"  # whole on every GPU
    return [1, 2] if is_quantised else [1, 2, 3]


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
    per_gpu = num_micro_batches(recipe.train.packs_per_step, num_gpus)
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
    most = max(1, int(COSTS["most_tokens"]) // recipe.train.pack_length_tokens) if is_gpu else 1
    return [packs for packs in range(1, most + 1) if per_gpu % packs == 0]
