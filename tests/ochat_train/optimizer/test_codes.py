"""How small optimizer states are stored, against float64 and literal bits."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ochat_train.optimizer.codes import (
    BLOCK,
    first_codes,
    first_values,
    joined_master,
    random_bits,
    rounded_bfloat16,
    second_codes,
    second_values,
    split_master,
)


def bits_of(value: float) -> int:
    return int(np.float32(value).view(np.int32))


def scalar(value: int) -> torch.Tensor:
    return torch.tensor(value)


def test_a_master_is_the_nearest_weight_and_8_more_bits() -> None:
    """1 + 2^-8 is between the bfloat16 1 and 1 + 2^-7; ties go away from zero."""
    masters = torch.tensor([1.0, 1.0 + 2.0**-9, 1.0 + 2.0**-8, -1.0 - 2.0**-8, 1.0 + 2.0**-15, 0.0])
    weights, rests = split_master(masters, torch.zeros(6, dtype=torch.int64))
    assert weights.tolist() == [1.0, 1.0, 1.0078125, -1.0078125, 1.0, 0.0]
    assert rests.tolist() == [0, 64, -128, -128, 1, 0]
    assert torch.equal(joined_master(weights, rests), masters)


def test_any_24_bits_are_kept_and_the_weight_is_what_a_float32_master_gives() -> None:
    generator = torch.Generator().manual_seed(0)
    masters = torch.randn(10_000, generator=generator) * torch.logspace(-30, 30, 10_000)
    kept = (masters.view(torch.int32) & ~0xFF).view(torch.float32)
    weights, rests = split_master(masters, torch.zeros(10_000, dtype=torch.int64))
    assert torch.equal(joined_master(weights, rests), kept)
    is_tie = (kept.view(torch.int32) & 0xFFFF) == 0x8000
    assert torch.equal(weights[~is_tie], kept[~is_tie].to(torch.bfloat16))


def test_what_a_split_drops_is_kept_on_average() -> None:
    """A change of a quarter of the last bit, 1,024 times: rounded to the nearest (the control) it never counts."""
    start, change = 1.0, 2.0**-17  # the last of 24 bits of 1 is 2^-15
    ends = []
    for rounding in ("random", "nearest"):
        weights, rests = split_master(torch.full((BLOCK * 4,), start), torch.zeros(BLOCK * 4, dtype=torch.int64))
        for step in range(1024):
            bits = random_bits(scalar(0), scalar(step * 7919), 4).view(-1) & 0xFF
            bits = bits if rounding == "random" else torch.full_like(bits, 128)
            weights, rests = split_master(joined_master(weights, rests) + change, bits)
        ends.append(float(joined_master(weights, rests).double().mean()) - start)
    assert ends[0] == pytest.approx(1024 * change, rel=0.02)
    assert ends[1] == 0.0


def test_random_bits_are_uniform_and_belong_to_a_place() -> None:
    bits = random_bits(scalar(0), scalar(12345), 4096)
    assert int(bits.min()) >= 0
    assert int(bits.max()) < 2**32
    for shift in range(32):
        assert float(((bits >> shift) & 1).double().mean()) == pytest.approx(0.5, abs=5e-3), shift
    assert torch.equal(random_bits(scalar(100 * BLOCK), scalar(12345), 10), bits[100:110])
    assert float((random_bits(scalar(0), scalar(12346), 4096) == bits).double().mean()) < 1e-3
    neighbours = bits.view(-1)[:-1] ^ bits.view(-1)[1:]
    assert float((neighbours & 0xFF).double().mean()) == pytest.approx(127.5, rel=5e-3)


@pytest.fixture
def moments() -> torch.Tensor:
    """float32[64, BLOCK], of very different sizes, within blocks too, and zeros."""
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(64, BLOCK, generator=generator) * torch.logspace(-12, 3, 64)[:, None]
    values *= torch.exp(2 * torch.randn(64, BLOCK, generator=generator))
    values[:, ::7] = 0.0
    values[5] = 0.0
    return values


def test_first_moments_have_a_relative_error_of_4_percent(moments: torch.Tensor) -> None:
    codes, scales = first_codes(moments)
    assert (codes.dtype, scales.shape) == (torch.int8, (64,))
    values = first_values(codes, scales)
    large = moments.abs() > 2.0**-14 * scales[:, None]
    assert float((values[large] / moments[large] - 1).abs().max()) < 0.04
    assert float((values - moments).abs().div(scales.clamp_min(1e-38)[:, None]).max()) < 0.04
    assert torch.equal(values[5], torch.zeros(BLOCK))
    again, _ = first_codes(values)
    assert torch.equal(again, codes), "what is stored is stored alike again"


def test_second_moments_have_a_relative_error_of_7_percent_and_never_become_zero(moments: torch.Tensor) -> None:
    """One of 2^-40 of the largest becomes 2^-24 of it, and its update is too small, not too large."""
    squares = moments.square()
    squares[0, 1:3] = torch.tensor([2.0**-40, 2.0**-20]) * squares[0].amax()
    random = random_bits(scalar(0), scalar(3), 64).float() / 2.0**32
    codes, scales = second_codes(squares, random)
    assert (codes.dtype, scales.shape) == (torch.uint8, (64,))
    values = second_values(codes, scales)
    large = squares > 2.0**-24 * scales[:, None]
    assert float((values[large] / squares[large] - 1).abs().max()) < 0.068
    assert torch.equal(values == 0, squares == 0)
    assert float(values[0, 1] / scales[0]) == pytest.approx(2.0**-24)
    assert torch.equal(second_codes(values, random)[0], codes)


def test_second_moments_are_kept_on_average() -> None:
    """Rounded to the nearest (the control) a value between two codes is off by a part of their distance."""
    value = 0.0123
    squares = torch.full((512, BLOCK), value)
    squares[:, 0] = 1.0
    random = random_bits(scalar(0), scalar(4), 512).float() / 2.0**32
    means = [
        float(second_values(*second_codes(squares, chosen))[:, 1:].double().mean())
        for chosen in (random, torch.full_like(random, 0.5))
    ]
    assert means[0] == pytest.approx(value, rel=5e-4)
    assert means[1] != pytest.approx(value, rel=5e-3)


def test_bfloat16_is_rounded_stochastically() -> None:
    values = torch.full((512 * BLOCK,), 1.0 + 2.0**-9)  # a quarter of the way from 1 to 1 + 2^-7
    bits = random_bits(scalar(0), scalar(5), 512).view(-1) & 0xFFF
    rounded = rounded_bfloat16(values, bits).double()
    assert set(rounded.tolist()) == {1.0, 1.0 + 2.0**-7}
    assert float(rounded.mean()) - 1.0 == pytest.approx(2.0**-9, rel=0.03)
