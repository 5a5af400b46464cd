"""How long a run takes: an estimate from measured speeds, and what it assumes."""

from __future__ import annotations

from dataclasses import dataclass, replace

from data_pipeline.errors import UserError
from ochat_train.planning.memory import StepCosts
from ochat_train.planning.memory_parts import MemorySetting
from ochat_train.planning.work import PEAK_FLOPS, Work
from ochat_train.recipe.recipe import Recipe

# Two sizes were measured, 7.24 billion and 134 million parameters. Below the first bound a model is like the smaller
# one, below the second it is like neither.
_SMALL_MODEL_PARAMETERS = 1_000_000_000
_TINY_MODEL_PARAMETERS = 100_000_000


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """A GPU to plan for.

    peak_flops: dense bfloat16 FLOP/s. memory_gib: as the driver reports it. relative_mfu: its MFU as a multiple of an
    H200's under the same setting.
    """

    name: str
    peak_flops: float
    memory_gib: float
    relative_mfu: float = 1.0


_H100_RELATIVE_MFU = 0.97  # 0.95 to 0.98 in seven bfloat16 runs: the same peak, slower memory; docs/performance.md
_GPUS = {
    name.lower(): Gpu(name=name, peak_flops=PEAK_FLOPS[name], memory_gib=memory_gib, relative_mfu=relative_mfu)
    for name, memory_gib, relative_mfu in (
        ("H100", 79.0, _H100_RELATIVE_MFU),
        ("H200", 139.0, 1.0),
        ("A100", 79.0, 1.0),
    )
}


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """A measured speed of the trainer, as a share of the dense bfloat16 peak (`training.meter`), and its setting."""

    mfu: float
    setting: MemorySetting
    pack_length_tokens: int
    source: str


def _seen(mfu: float, *, num_full: int, sum_dtype: str, text: str) -> Measurement:
    layers = ("full",) * num_full + ("matmuls",) * (32 - num_full)
    return Measurement(
        mfu=mfu,
        pack_length_tokens=8192,
        source=f"{text}, Mistral-7B shapes on 1 x H200",
        setting=MemorySetting(zero_stage=1, checkpointing=layers, packs_per_micro_batch=1, sum_dtype=sum_dtype),
    )


# By (model.float8, train.gradient_dtype); docs/performance.md, "Whole steps".
MEASURED = {
    (False, "float32"): _seen(0.487, num_full=20, sum_dtype="float32", text="bfloat16"),
    (False, "bfloat16"): _seen(0.564, num_full=0, sum_dtype="bfloat16", text="bfloat16, bfloat16 gradients"),
    (True, "float32"): _seen(0.635, num_full=20, sum_dtype="float32", text="float8"),
    (True, "bfloat16"): _seen(0.751, num_full=0, sum_dtype="bfloat16", text="float8, bfloat16 gradients"),
}
_ON_H100 = "Mistral-7B shapes on 1 x H100"


def _seen_with_adapter(mfu: float, *, checkpointing: str, text: str) -> Measurement:
    """mfu: of an H100."""
    setting = MemorySetting(
        zero_stage=1, checkpointing=(checkpointing,) * 32, packs_per_micro_batch=1, sum_dtype="float32"
    )
    source = f"{text}, {_ON_H100}"
    return Measurement(mfu=mfu / _H100_RELATIVE_MFU, pack_length_tokens=8192, source=source, setting=setting)


# By `adapter.type`; docs/adapters.md, "Speed".
MEASURED_WITH_ADAPTER = {
    "lora": _seen_with_adapter(0.493, checkpointing="none", text="LoRA of rank 16"),
    "qlora": _seen_with_adapter(0.359, checkpointing="full", text="QLoRA of rank 16"),
}
_MEASURED_FILL = 0.973  # of the packs in these runs; the rest was padding
# docs/performance.md, "Failures": 4 to 6 %, kernels are launched too slowly.
_SMALL_MODEL_MFU = 0.05
_SMALL_MODEL_SOURCE = (
    "seen with 134 million parameters and 4,096 tokens a micro-batch, where launching kernels is the limit"
)


@dataclass(frozen=True, kw_only=True)
class AssumedSpeed:
    """The MFU that an estimate uses: None where nothing similar was measured. basis: its origin, or why it is None."""

    mfu: float | None
    basis: str


def find_gpu(text: str, *, memory_gib: float | None) -> Gpu:
    """The GPU of `--gpu`: a name, or a peak in TFLOP/s. Raises UserError for anything else.

    memory_gib: replaces that of a named GPU.
    """
    known = _GPUS.get(text.lower())
    if known is not None:
        return replace(known, memory_gib=memory_gib or known.memory_gib)
    try:
        peak = float(text) * 1e12
    except ValueError:
        peak = 0.0
    if not 0.0 < peak < float("inf"):
        raise UserError(
            f"--gpu {text}",
            "neither a GPU that is known here nor a number",
            f"give {', '.join(_GPUS)} or a dense bfloat16 peak in TFLOP/s, for example --gpu 2250",
        )
    if memory_gib is None:
        remedy = "add --gpu-memory GIB; `--gpus` is the number of GPUs"
        raise UserError(f"--gpu {text}", "the memory of such a GPU is not known", remedy)
    return Gpu(name=f"GPU of {text} TFLOP/s", peak_flops=peak, memory_gib=memory_gib)


@dataclass(frozen=True, kw_only=True)
class MeanPack:
    """Contents of an epoch's packs, on average.

    num_tokens: without padding. squared_lengths: sum of the squared lengths of conversations, in tokens.
    """

    num_tokens: float
    squared_lengths: float


def useful_ratio(work: Work, pack: MeanPack, *, pack_length_tokens: int) -> float:
    """Useful operations of a mean pack, as a multiple of those of a pack as full as the measured ones.

    Both take a GPU the same time, because it multiplies matrices for padding as well. Attention within padding costs
    little and is not counted.
    """
    full = work.flops(num_tokens=_MEASURED_FILL * pack_length_tokens, squared_lengths=pack.squared_lengths)
    return work.flops(num_tokens=pack.num_tokens, squared_lengths=pack.squared_lengths) / full


def assumed_speed(
    recipe: Recipe,
    setting: MemorySetting,
    *,
    gpu: Gpu,
    num_parameters: int,
    own: float | None,
    useful: float,
    trained_ratio: float = 1.0,
) -> AssumedSpeed:
    """The MFU that an estimate uses.

    own: the user's, which is not scaled: a share of the peak in useful operations, without padding; None for a measured
    one. That is scaled by `useful` (`useful_ratio`), by the costs of the two settings (`StepCosts.relative_seconds`)
    and by `gpu.relative_mfu`. trained_ratio: as in `StepCosts`.
    """
    if own is not None:
        return AssumedSpeed(mfu=own, basis="given by --mfu")
    for is_unlike, what in (
        (recipe.model.compile is False, "model.compile: false"),
        (recipe.model.precision == "float32", "model.precision: float32"),
        (recipe.deepspeed.offload_optimizer or recipe.deepspeed.offload_parameters, "offload to CPU memory"),
        (
            num_parameters < _TINY_MODEL_PARAMETERS,
            "so small a model (launching kernels, not the GPU's peak, is its limit)",
        ),
    ):
        if is_unlike:
            return AssumedSpeed(mfu=None, basis=f"no speed was measured with {what}; give one with --mfu")
    if num_parameters < _SMALL_MODEL_PARAMETERS:
        return AssumedSpeed(mfu=_SMALL_MODEL_MFU * useful, basis=f"{_SMALL_MODEL_SOURCE}; adjusted to padding")
    seen = MEASURED[recipe.model.float8, recipe.train.gradient_dtype]
    if recipe.adapter is not None:
        seen = MEASURED_WITH_ADAPTER[recipe.adapter.type]
    costs = StepCosts.of(recipe, compiled=True, trained_ratio=trained_ratio)
    then = replace(costs, pack_length_tokens=seen.pack_length_tokens).relative_seconds(seen.setting)
    now = costs.relative_seconds(setting)
    basis = (
        f"{seen.mfu:.1%} measured ({seen.source}), adjusted to this GPU, setting and padding; smaller models are slower"
    )
    return AssumedSpeed(mfu=seen.mfu * useful * gpu.relative_mfu * then / now, basis=basis)


def step_seconds(work: Work, pack: MeanPack, *, packs_per_gpu: int, gpu: Gpu, mfu: float) -> float:
    """Seconds of an optimizer step. Empty packs, which fill up the GPUs' shares, take as long as full ones."""
    pack_flops = work.flops(num_tokens=pack.num_tokens, squared_lengths=pack.squared_lengths)
    return packs_per_gpu * pack_flops / (gpu.peak_flops * mfu)
