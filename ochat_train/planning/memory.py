"""What fits into GPU memory, decided before a run: ZeRO stage, activation checkpointing, packs per micro-batch.

Computed from shapes alone, so that `ochat plan` gives the same answer without a GPU. docs/performance.md compares it
with measured peaks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch

from data_pipeline.errors import UserError
from data_pipeline.plan.plan import num_micro_batches
from ochat_train.adapter.quantize import qlora_error, stage_obstacle
from ochat_train.model.base_class import text_config
from ochat_train.model.config import layer_widths, model_dtype
from ochat_train.model.experts import expert_count
from ochat_train.model.loss import CHUNK_TOKENS
from ochat_train.optimizer.size import STATE_SIZES
from ochat_train.planning.adapters import NF4_BYTES, AdapterShape
from ochat_train.planning.costs import COSTS
from ochat_train.planning.gradients import (
    GROUP_ELEMENTS,
    bucket_elements,
    dtype_of_sums,
    gradient_bytes,
    num_backwards,
)
from ochat_train.recipe.recipe import Recipe

GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """What the memory of a model depends on.

    num_frozen: of the parameters, those that have no gradients and no optimizer state.
    hidden, intermediate: sizes of the hidden states and of the MLP. vocab_size: rows of the head.
    layer_bytes: bytes that a layer keeps per token in 16-bit precision, by `activation_checkpointing`.
    adapter: what is trained instead of all other parameters, and is not counted in them; None for no adapter.
    """

    num_parameters: int
    num_frozen: int = 0
    num_layers: int
    hidden: int
    intermediate: int
    vocab_size: int
    layer_bytes: dict[str, float]
    adapter: AdapterShape | None = None

    @property
    def num_trained(self) -> int:
        """Parameters with gradients and optimizer states."""
        return self.num_parameters - self.num_frozen if self.adapter is None else self.adapter.num_trained

    @property
    def trained_ratio(self) -> float:
        """Parameters that are trained, as a share of those of the language model."""
        return self.num_trained / (self.num_parameters - self.num_frozen)

    def weight_bytes(self, width: int) -> float:
        """Bytes of all weights, those of the adapter included. width: of a number in the model's dtype."""
        if self.adapter is None:
            return float(self.num_parameters * width)
        quantised = self.adapter.num_quantised
        return (self.num_parameters - quantised + self.adapter.num_trained) * width + quantised * NF4_BYTES


@dataclass(frozen=True, kw_only=True)
class MemoryParts:
    """Bytes of a GPU's memory, by what they hold, in the backward pass or in the update, whichever needs more."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    buffers: float

    def items(self) -> Iterable[tuple[str, float]]:
        """Names and bytes, in the order of a message."""
        return vars(self).items()

    @property
    def total(self) -> float:
        """Bytes of all parts."""
        return float(sum(vars(self).values()))


@dataclass(frozen=True, kw_only=True)
class MemorySetting:
    """What decides memory and speed of a run.

    checkpointing: one of `none`, `matmuls`, `full` per layer. sum_dtype: `gradients.dtype_of_sums`. states:
    `optimizer.states`. adapter: `adapter.type`, None where all weights are trained. offloaded:
    `deepspeed.offload_optimizer`. checkpointing_is_set: by the recipe, not by the memory.
    """

    zero_stage: int
    checkpointing: tuple[str, ...]
    packs_per_micro_batch: int
    sum_dtype: str
    states: str = "float32"
    adapter: str | None = None
    offloaded: bool = False
    checkpointing_is_set: bool = False

    @property
    def checkpointing_text(self) -> str:
        """As a recipe writes it."""
        num_full = self.checkpointing.count("full")
        return self.checkpointing[-1] if num_full in (0, len(self.checkpointing)) else f"layers: {num_full}"


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
        cost = COSTS["full"].value * setting.checkpointing.count("full") / num
        cost += self._stage_cost(setting.zero_stage)
        has_adapter = self.trained_ratio < 1.0
        if not has_adapter or not self.compiled:
            cost += COSTS["none"].value * setting.checkpointing.count("none" if self.compiled else "matmuls") / num
        if setting.zero_stage <= 1 and self.trained_ratio == 1.0:  # adding up so few gradients takes no time
            cost += COSTS[setting.sum_dtype].value / (self.pack_length_tokens * setting.packs_per_micro_batch)
        if self.float8:
            return 1.0 + cost * COSTS["float8"].value
        if not has_adapter:
            return 1.0 + cost
        again = COSTS["adapter_matmuls"].value * setting.checkpointing.count("matmuls") / num if self.compiled else 0.0
        return 1.0 + cost * COSTS["frozen"].value + again

    def _stage_cost(self, zero_stage: int) -> float:
        """Gradients are reduced of what is trained, weights are gathered of the whole model."""
        if zero_stage < 3:
            return COSTS[f"stage_{zero_stage}"].value * self.trained_ratio
        gathering = COSTS["stage_3"].value - COSTS["stage_2"].value
        return gathering + COSTS["stage_2"].value * self.trained_ratio


def model_shape(
    config: Any,
    *,
    vocab_size: int,
    num_parameters: int,
    compiled: bool,
    num_frozen: int = 0,
    adapter: AdapterShape | None = None,
) -> ModelShape:
    """Shapes from a `transformers` config. num_parameters: without an adapter. num_frozen: of these, those outside the
    language model, which are never trained. adapter: None for no adapter.

    A compiled layer keeps, in 16-bit precision: its input, queries, keys, values, the attention's output, its
    projection and the two MLP projections (`matmuls`); with `none` also both norms and the MLP's product. On Mistral
    shapes that is 92 and 136 KiB per token, as measured (docs/performance.md). Uncompiled layers keep about twice that.
    With an adapter a norm's result and the MLP's product are kept only where a targeted module reads them.
    """
    config, widths = text_config(config), layer_widths(config)
    hidden, intermediate = config.hidden_size, widths.intermediate
    matmuls: float = 2 * (2 * hidden + widths.query + widths.key + widths.value + widths.output + 2 * intermediate)
    none: float = matmuls + 2 * (2 * hidden + intermediate)
    if adapter is not None:
        matmuls += adapter.product_bytes
        none = matmuls + adapter.input_bytes
    if expert_count(config):  # `matmuls` does not keep grouped products; a token has a row in each of its experts
        rows = getattr(config, "num_experts_per_tok", None) or 1
        none += 2 * rows * (2 * hidden + 3 * (getattr(config, "moe_intermediate_size", None) or intermediate))
    return ModelShape(
        num_parameters=num_parameters,
        num_frozen=num_frozen,
        num_layers=config.num_hidden_layers,
        hidden=hidden,
        intermediate=intermediate,
        vocab_size=vocab_size,
        layer_bytes={"full": 2 * hidden, "matmuls": matmuls, "none": none if compiled else 2 * none},
        adapter=adapter,
    )


def memory_parts(recipe: Recipe, shape: ModelShape, setting: MemorySetting, *, num_gpus: int) -> MemoryParts:
    """Bytes of GPU memory by part, for a GPU run (bfloat16 unless the recipe says float32).

    DeepSpeed: 2 bytes a parameter for weights, 12 for float32 masters and two AdamW moments (STATE_SIZES has those of
    other `optimizer.states`); gradients are summed whole on each GPU up to stage 1, in shards from stage 2.
    """
    settings, stage = recipe.deepspeed, setting.zero_stage
    wide = recipe.model.precision == "float32"
    width = 4 if wide else 2  # bytes of a number in the model's dtype
    shard = {
        name: num_gpus if stage >= least else 1 for name, least in (("optimizer", 1), ("gradients", 2), ("weights", 3))
    }
    num = shape.num_trained
    buckets = 2 * width * bucket_elements(num) if num_gpus > 1 and stage else 0
    gathered = 2 * (shape.num_parameters - shape.num_frozen) / shape.num_layers * 2 * width if stage == 3 else 0
    states = STATE_SIZES[recipe.optimizer.states].per_parameter(bfloat16=not wide)
    optimizer = 0.0 if settings.offload_optimizer else num * states / shard["optimizer"]
    adds_up = _adds_up(recipe, num_gpus, setting.packs_per_micro_batch)
    gradients = num * gradient_bytes(recipe, stage, adds_up=adds_up) / shard["gradients"]
    group = min(num, GROUP_ELEMENTS) / (num_gpus if stage else 1)
    # of a group: float32 gradients, twice; small states: gradients as they were summed, and in the weights' dtype
    of_group = 8.0 if recipe.optimizer.states == "float32" else 4.0 + width
    in_update = of_group * group + (2.0 * num if stage <= 1 and not wide else gradients)
    activations = _activation_bytes(recipe, shape, setting, width=width)
    return MemoryParts(
        weights=0.0 if settings.offload_parameters else shape.weight_bytes(width) / shard["weights"],
        gradients=gradients,
        optimizer=optimizer,
        activations=max(activations, in_update - gradients),
        buffers=float(buckets + gathered),
    )


def _activation_bytes(recipe: Recipe, shape: ModelShape, setting: MemorySetting, *, width: int) -> float:
    """Bytes of the backward pass: what layers keep, one layer recomputed, the loss head, one layer's working memory.

    width: bytes of a number in the model's dtype.
    """
    tokens = recipe.train.pack_length_tokens * setting.packs_per_micro_batch
    kept = sum(shape.layer_bytes[kind] for kind in setting.checkpointing) * tokens * width / 2
    recomputed = shape.layer_bytes["none"] * tokens * width / 2 if "full" in setting.checkpointing else 0.0
    head = shape.vocab_size * min(CHUNK_TOKENS, tokens) * 8  # logits, softmax
    # of the head: float32 gradient, the rounded one, an aligned copy; a frozen one has no gradient
    head += shape.vocab_size * shape.hidden * (4 + 2 * width if shape.adapter is None else width)
    working: float = 4 * width * (shape.intermediate + shape.hidden) * tokens
    if shape.adapter is not None:
        working += COSTS["dequantised"].value * shape.adapter.largest_quantised * width
    return kept + recomputed + head + working


def _adds_up(recipe: Recipe, num_gpus: int, packs_per_micro_batch: int) -> bool:
    """Whether a step has several micro-batches."""
    return num_backwards(recipe, num_gpus=num_gpus, packs_per_micro_batch=packs_per_micro_batch) > 1


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
    budget = free_bytes * COSTS["usable_ratio"].value - (COSTS["nccl_bytes"].value if num_gpus > 1 else 0.0)
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
            sum_dtype=dtype_of_sums(recipe, stage, adds_up=_adds_up(recipe, num_gpus, packs)),
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
    is_quantised = recipe.adapter is not None and recipe.adapter.type == "qlora"
    if settings.zero_stage is not None:
        if is_quantised and (obstacle := stage_obstacle(settings.zero_stage)):
            raise qlora_error(obstacle)
        return [settings.zero_stage]
    if not is_gpu or settings.offload_optimizer:
        return [2]
    if num_gpus == 1:
        return [1]
    return [stage for stage in (1, 2, 3) if not (is_quantised and stage_obstacle(stage))]


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
    most = max(1, int(COSTS["most_tokens"].value) // recipe.train.pack_length_tokens) if is_gpu else 1
    return [packs for packs in range(1, most + 1) if per_gpu % packs == 0]
