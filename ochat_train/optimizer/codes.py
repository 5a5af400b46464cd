"""How small optimizer states are stored: pure functions of tensors, on any device, compiled or not.

Weights. A bfloat16 weight is the upper half of a float32. Beside it, 8 more bits are kept, so that weight and rest
together are a float32 without its last 8 bits: 16 bits of precision instead of 8. The weight is the nearest bfloat16 of
the two, so the model computes with the same weights as it would beside float32 masters. What an update drops is
rounded stochastically: a change smaller than the last bit is kept on average. Splitting a master weight like this is
from FlashOptim (arXiv 2602.23349).

Moments in 8 bits. Blocks of `BLOCK` numbers share a float32 scale, their largest magnitude. A code stands for a power
of two, in equal steps: every number has the same relative error, down to 2^-14 (first moment) and 2^-24 (second) of the
largest. A second moment that is not zero never becomes zero, which would make its update huge. Blocks and scales are
those of 8-bit optimizers (arXiv 2110.02861); with their codes, 0 among large second moments is what goes wrong.

Random bits are a hash of a number's place in the model and of the step, not of a generator: a run that resumes rounds
alike, and so do other numbers of GPUs up to ZeRO-2.
"""

from __future__ import annotations

import torch

BLOCK = 128
"""Numbers that share a scale."""

_MASK = 0xFFFFFFFF
_FIRST_OCTAVES, _FIRST_STEPS = 14.0, 126  # codes 1 to 127 of the magnitude
_SECOND_OCTAVES, _SECOND_STEPS = 24.0, 254  # codes 1 to 255
_SMALLEST = 2.0**-126  # the smallest float32 with full precision


def random_bits(start: torch.Tensor, key: torch.Tensor, num_blocks: int) -> torch.Tensor:
    """int64[num_blocks, BLOCK], 32 random bits for each of the places start, start + 1, ...

    start, key: int64 scalars; key decides the sequence and is below 2^32. The products stay below 2^63, so that nothing
    depends on how a device overflows.
    """
    blocks = torch.arange(num_blocks, device=start.device)[:, None] * BLOCK
    places = blocks + torch.arange(BLOCK, device=start.device) + start
    bits = (places & _MASK) ^ key
    for _ in range(2):
        bits = ((bits ^ (bits >> 16)) * 0x45D9F3B) & _MASK
    return bits ^ (bits >> 16)


def joined_master(weight: torch.Tensor, rest: torch.Tensor) -> torch.Tensor:
    """float32 of a bfloat16 weight and the 8 bits kept beside it. rest: int8, in units of 2^-8 of the weight's last
    bit.
    """
    return (weight.float().view(torch.int32) + (rest.to(torch.int32) << 8)).view(torch.float32)


def split_master(master: torch.Tensor, bits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(weight bfloat16, rest int8) of a float32, its last 8 bits rounded stochastically.

    bits: int64 from 0 to 255, uniform. With bits 0 the last 8 bits are dropped. The weight is the nearest bfloat16,
    ties away from zero.
    """
    upper = (master.view(torch.int32) + bits.to(torch.int32)) >> 8
    weight = (upper + 128) >> 8
    rest = upper - (weight << 8)
    return (weight << 16).view(torch.float32).to(torch.bfloat16), rest.to(torch.int8)


def first_codes(moments: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(codes int8[B, BLOCK], scales float32[B]) of first moments, float32[B, BLOCK], to the nearest code."""
    scales = moments.abs().amax(1)
    ratios = moments.abs() / scales.clamp_min(_SMALLEST)[:, None]
    codes = _codes(ratios, torch.full_like(ratios, 0.5), octaves=_FIRST_OCTAVES, steps=_FIRST_STEPS)
    codes = torch.where(ratios > 0.5 * 2.0**-_FIRST_OCTAVES, codes, 0)
    return (codes * moments.sign()).to(torch.int8), scales


def first_values(codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """float32[B, BLOCK] of what `first_codes` gave."""
    signed = codes.float()
    values = signed.sign() * _values(signed.abs(), octaves=_FIRST_OCTAVES, steps=_FIRST_STEPS)
    return values * scales[:, None]


def second_codes(moments: torch.Tensor, random: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(codes uint8[B, BLOCK], scales float32[B]) of second moments, float32[B, BLOCK] from 0.

    random: float32[B, BLOCK], uniform from 0 to 1. Rounded stochastically: with a beta near 1 a moment changes in a
    step by less than half a code, and to the nearest it would never change.
    """
    scales = moments.amax(1)
    ratios = moments / scales.clamp_min(_SMALLEST)[:, None]
    codes = _codes(ratios, random, octaves=_SECOND_OCTAVES, steps=_SECOND_STEPS)
    return torch.where(moments > 0, codes, 0).to(torch.uint8), scales


def second_values(codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """float32[B, BLOCK] of what `second_codes` gave."""
    return _values(codes.float(), octaves=_SECOND_OCTAVES, steps=_SECOND_STEPS) * scales[:, None]


def rounded_bfloat16(values: torch.Tensor, bits: torch.Tensor) -> torch.Tensor:
    """bfloat16 of a float32, rounded stochastically. bits: int64 from 0 to 4,095, uniform."""
    whole = (values.view(torch.int32) + (bits.to(torch.int32) << 4)) >> 16
    return (whole << 16).view(torch.float32).to(torch.bfloat16)


def _codes(ratios: torch.Tensor, random: torch.Tensor, *, octaves: float, steps: int) -> torch.Tensor:
    """float32 codes from 1 to steps + 1 of ratios from 0 to 1; those below 2^-octaves get 1.

    random: up to where between two codes, in what they stand for, the lower one is taken: 0.5 is the nearest.
    """
    per_octave = steps / octaves
    places = ((torch.log2(ratios.clamp_min(2.0**-octaves)) + octaves) * per_octave).clamp(0.0, float(steps))
    lower = places.floor().clamp_max(float(steps - 1))
    one_code: float = 2.0 ** (1.0 / per_octave) - 1.0
    between = (torch.exp2((places - lower) / per_octave) - 1.0) / one_code
    codes: torch.Tensor = lower + 1.0 + (between > random).float()
    return codes


def _values(codes: torch.Tensor, *, octaves: float, steps: int) -> torch.Tensor:
    """What `_codes` stand for; 0 for code 0."""
    values = torch.exp2((codes - (steps + 1)) * (octaves / steps))
    return torch.where(codes > 0, values, 0.0)
