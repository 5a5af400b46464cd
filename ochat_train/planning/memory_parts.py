"""How much GPU memory a run needs under a setting, by what holds it: computed from shapes alone.

docs/performance.md compares it with measured peaks.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ochat_train.model.base_class import text_config
from ochat_train.model.config import layer_widths
from ochat_train.model.experts import expert_count
from ochat_train.model.loss import CHUNK_TOKENS
from ochat_train.optimizer.size import STATE_SIZES
from ochat_train.planning.adapters import NF4_BYTES, AdapterShape
from ochat_train.planning.costs import COSTS
from ochat_train.planning.gradients import GROUP_ELEMENTS, adds_up_gradients, bucket_elements, gradient_bytes
from ochat_train.recipe.recipe import Recipe


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
    adds_up = adds_up_gradients(recipe, num_gpus=num_gpus, packs_per_micro_batch=setting.packs_per_micro_batch)
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
        working += COSTS["dequantised"] * shape.adapter.largest_quantised * width
    return kept + recomputed + head + working
