"""Weights in NF4: 4 bits each, in blocks of 64 with a scale, whose scales are 8 bits with scales of their own.

The layout is that of bitsandbytes (`quantize_4bit` with `compress_statistics`), whose kernels read it. What is stored
is computed here, with operations that give the same bits on every device: an export on a CPU then merges an adapter
into exactly the base that it was trained on. bitsandbytes takes a mean that depends on the order of a sum.

Source: QLoRA, arXiv 2305.14314, section 3.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import torch

BLOCK = 64  # weights with one scale
GROUP = 256  # scales with one scale
_AT_ONCE = 2**24  # weights that are worked on together, which bounds the memory for it
_SUM_BITS = 36  # of the largest scale, in the integers that are added up; 2^26 of them fit


@dataclass(frozen=True, kw_only=True)
class QuantisedWeight:
    """A weight [N, K] in 4 bits.

    packed: uint8[N K / 2], the first of two weights in the higher bits. scales: uint8[N K / block], places in a table;
    or the bits of float32 scales, int32, where they are not quantised. constants: the bits of float32 numbers, int32:
    the scales' offset, the 256 entries of their table, and one scale for each 256 of them; empty where they are not
    quantised. They are bits because a cast of a model to bfloat16 leaves integers alone.
    kind: `nf4`, or `fp4` in bases that are stored so. block: weights with one scale.
    """

    packed: torch.Tensor
    scales: torch.Tensor
    constants: torch.Tensor
    shape: tuple[int, int]
    kind: str = "nf4"
    block: int = BLOCK


@torch.no_grad()
def quantise(weight_NK: torch.Tensor) -> QuantisedWeight:
    """A weight in NF4, on its device. Raises ValueError for one that has not a multiple of 64 numbers, or not finite
    ones.
    """
    flat = weight_NK.reshape(-1)
    if flat.numel() % BLOCK:
        raise ValueError(f"its {flat.numel()} numbers are not a multiple of {BLOCK}")
    parts = [_quantised_blocks(part) for part in flat.split(_AT_ONCE)]
    absmax = torch.cat([found for _, found in parts])
    if not torch.isfinite(absmax).all():
        raise ValueError("it holds NaN or infinity")
    scales, constants = _quantised_scales(absmax)
    rows, columns = weight_NK.shape
    packed = torch.cat([found for found, _ in parts])
    return QuantisedWeight(packed=packed, scales=scales, constants=constants, shape=(rows, columns))


def _quantised_blocks(flat: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Packed codes, and the largest magnitude of each block, float32."""
    blocks = flat.float().reshape(-1, BLOCK)
    absmax = blocks.abs().amax(dim=1)
    codes = _nearest(_share(blocks, absmax), _table("nf4", flat.device)).reshape(-1, 2)
    return (codes[:, 0] << 4) | codes[:, 1], absmax


def _quantised_scales(absmax: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`scales` and `constants` of QuantisedWeight."""
    offset = torch.tensor([_mean(absmax)], dtype=torch.float32, device=absmax.device)
    table = _table("scales", absmax.device)
    apart = absmax - offset
    num_groups = -(-len(apart) // GROUP)
    groups = torch.nn.functional.pad(apart, (0, num_groups * GROUP - len(apart))).reshape(num_groups, GROUP)
    group_scales = groups.abs().amax(dim=1)
    scales = _nearest(_share(groups, group_scales), table).reshape(-1)[: len(apart)]
    return scales.contiguous(), torch.cat([offset, table, group_scales]).view(torch.int32)


def _share(rows: torch.Tensor, largest: torch.Tensor) -> torch.Tensor:
    """Numbers as parts of the largest of their row, as bitsandbytes computes them."""
    return (rows * (1.0 / largest.clamp(min=1e-38))[:, None]).clamp(-1, 1)


def _nearest(values: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Places of the nearest entries of a sorted table, uint8."""
    return torch.bucketize(values, (table[:-1] + table[1:]) / 2, out_int32=True).to(torch.uint8)


def _mean(values: torch.Tensor) -> float:
    """The mean of numbers that are not negative: a sum of integers, which has no order."""
    largest = float(values.max())
    if largest == 0.0:
        return 0.0
    shift = _SUM_BITS - math.frexp(largest)[1]
    total = int((values.double() * 2.0**shift).round().to(torch.int64).sum())
    return math.ldexp(total / len(values), -shift)


@cache
def _table(name: str, device: torch.device) -> torch.Tensor:
    """Numbers that codes stand for, sorted, float32: the 16 of `nf4`, or the 256 of `scales`."""
    from bitsandbytes import functional  # type: ignore[import-not-found, unused-ignore]

    table: torch.Tensor = (
        functional.get_4bit_type("nf4", device="cpu") if name == "nf4" else functional.create_dynamic_map()
    )
    return table.to(device=device, dtype=torch.float32)


def dequantise(weight: QuantisedWeight, dtype: torch.dtype) -> torch.Tensor:
    """The weight [N, K] that is computed with: table entries times scales in float32, rounded to `dtype`."""
    import bitsandbytes  # type: ignore[import-not-found, unused-ignore]  # noqa: F401  (its operators)

    operators = torch.ops.bitsandbytes
    if weight.constants.numel():
        constants = weight.constants.view(torch.float32)
        offset, table, group_scales = constants[:1], constants[1:257], constants[257:]
        scales = operators.dequantize_blockwise(weight.scales, group_scales, table, GROUP, torch.float32) + offset
    else:
        scales = weight.scales.view(torch.float32)
    # as one row: the kernel for CPUs begins a block with every row, where a row is not a multiple of a block
    flat: torch.Tensor = operators.dequantize_4bit(
        weight.packed, scales, weight.block, weight.kind, [1, 2 * weight.packed.numel()], dtype
    )
    return flat.reshape(weight.shape)


@torch.library.custom_op("ochat::nf4_linear", mutates_args=())
def _linear(
    x: torch.Tensor,
    packed: torch.Tensor,
    scales: torch.Tensor,
    constants: torch.Tensor,
    bias: torch.Tensor | None,
    kind: str,
    block: int,
    num_rows: int,
) -> torch.Tensor:
    """x W^T + b. One operator, so that no compiler keeps W for the backward pass."""
    return torch.nn.functional.linear(x, _weight(x, packed, scales, constants, kind, block, num_rows), bias)


@torch.library.custom_op("ochat::nf4_linear_backward", mutates_args=())
def _linear_backward(
    grad: torch.Tensor,
    packed: torch.Tensor,
    scales: torch.Tensor,
    constants: torch.Tensor,
    kind: str,
    block: int,
    num_rows: int,
) -> torch.Tensor:
    """The gradient of x. W is computed again; it and the bias are frozen."""
    return grad @ _weight(grad, packed, scales, constants, kind, block, num_rows)


def _weight(
    x: torch.Tensor,
    packed: torch.Tensor,
    scales: torch.Tensor,
    constants: torch.Tensor,
    kind: str,
    block: int,
    num_rows: int,
) -> torch.Tensor:
    """W in the dtype of what it is multiplied with."""
    shape = (num_rows, 2 * packed.numel() // num_rows)
    weight = QuantisedWeight(packed=packed, scales=scales, constants=constants, shape=shape, kind=kind, block=block)
    return dequantise(weight, x.dtype)


@_linear.register_fake
def _(
    x: torch.Tensor,
    packed: torch.Tensor,
    scales: torch.Tensor,
    constants: torch.Tensor,
    bias: torch.Tensor | None,
    kind: str,
    block: int,
    num_rows: int,
) -> torch.Tensor:
    return x.new_empty((*x.shape[:-1], num_rows))


@_linear_backward.register_fake
def _(
    grad: torch.Tensor,
    packed: torch.Tensor,
    scales: torch.Tensor,
    constants: torch.Tensor,
    kind: str,
    block: int,
    num_rows: int,
) -> torch.Tensor:
    return grad.new_empty((*grad.shape[:-1], 2 * packed.numel() // num_rows))


def _keep(ctx: torch.autograd.function.FunctionCtx, inputs: tuple[object, ...], output: torch.Tensor) -> None:
    _, packed, scales, constants, _, *rest = inputs
    ctx.save_for_backward(packed, scales, constants)  # type: ignore[arg-type]
    ctx.rest = rest  # type: ignore[attr-defined]


def _gradients(ctx: torch.autograd.function.FunctionCtx, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    needed: tuple[bool, ...] = ctx.needs_input_grad  # type: ignore[attr-defined]
    if any(needed[1:]):
        raise RuntimeError("a quantised weight and its bias have no gradient")
    saved: tuple[torch.Tensor, ...] = ctx.saved_tensors  # type: ignore[attr-defined]
    grad_x = _linear_backward(grad, *saved, *ctx.rest) if needed[0] else None  # type: ignore[attr-defined]
    return (grad_x, *[None] * (len(needed) - 1))


_linear.register_autograd(_gradients, setup_context=_keep)


class Nf4Linear(torch.nn.Linear):
    """A linear module whose weight is quantised and frozen. Everything that reads `weight` gets what it computes with.

    Its numbers are buffers that no state has: they come from the base, and a checkpoint holds only what is trained.
    """

    packed: torch.Tensor
    scales: torch.Tensor
    constants: torch.Tensor

    def __init__(self, weight: QuantisedWeight, bias: torch.nn.Parameter | None, *, dtype: torch.dtype) -> None:
        torch.nn.Module.__init__(self)
        self.out_features, self.in_features = weight.shape
        self.kind, self.block, self.dtype = weight.kind, weight.block, dtype
        for name in ("packed", "scales", "constants"):
            self.register_buffer(name, getattr(weight, name), persistent=False)
        if bias is not None:
            bias.requires_grad_(False)
        self.bias = bias  # type: ignore[assignment]

    @property
    def quantised(self) -> QuantisedWeight:
        """The weight in 4 bits."""
        return QuantisedWeight(
            packed=self.packed,
            scales=self.scales,
            constants=self.constants,
            shape=(self.out_features, self.in_features),
            kind=self.kind,
            block=self.block,
        )

    @property
    def weight(self) -> torch.Tensor:  # type: ignore[override]
        """W [N, K] in the dtype of the forward pass, computed at every call; has no gradient."""
        return dequantise(self.quantised, self.dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x W^T + b."""
        numbers = (self.packed, self.scales, self.constants)
        found: torch.Tensor = _linear(x, *numbers, self.bias, self.kind, self.block, self.out_features)
        return found
