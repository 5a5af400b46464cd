"""Attention kernels against a float64 softmax over each conversation alone."""

from __future__ import annotations

import pytest
import torch

from data_pipeline.errors import UserError
from ochat_train.model.attention.choose import COMPILABLE, KERNELS, choose_attention
from ochat_train.model.attention.torch_kernels import attention_sdpa
from tests.support.measured import Measured
from tests.support.reference import relative_error

LENGTHS = [[1, 2], [5, 1, 17], [64, 200, 3, 33]]
EXACT_KERNELS = {"flex": 5e-6, "sdpa": 5e-6}  # kernels that also run in float32


def truth(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, lengths: list[int], window: int | None
) -> torch.Tensor:
    """Softmax attention written out, one conversation and head at a time, with autograd. Shapes [T, H or G, D]."""
    outputs, start = [], 0
    group = query.shape[1] // key.shape[1]
    for length in lengths:
        rows = slice(start, start + length)
        distance = (
            torch.arange(length, device=query.device)[:, None] - torch.arange(length, device=query.device)[None, :]
        )
        hidden = (distance < 0) if window is None else (distance < 0) | (distance >= window)
        heads = []
        for head in range(query.shape[1]):
            scores = query[rows, head] @ key[rows, head // group].T * query.shape[2] ** -0.5
            heads.append(scores.masked_fill(hidden, -torch.inf).softmax(-1) @ value[rows, head // group])
        outputs.append(torch.stack(heads, dim=1))
        start += length
    return torch.cat(outputs)


def check(
    name: str, lengths: list[int], window: int | None, *, device: str, dtype: torch.dtype, head_dim: int = 64
) -> tuple[float, ...]:
    """Relative errors of output and three gradients against float64 of the same inputs."""
    generator = torch.Generator().manual_seed(0)
    total = sum(lengths)
    shapes = ((total, 4, head_dim), (total, 2, head_dim), (total, 2, head_dim), (total, 4, head_dim))
    tensors = [torch.randn(*shape, generator=generator).to(device, dtype) for shape in shapes]
    bounds = [0, *torch.tensor(lengths).cumsum(0).tolist()]
    cu_seqlens = torch.tensor(bounds + [total] * 3, dtype=torch.int32, device=device)  # padded with empty sequences
    results = []
    for precision in (torch.float64, dtype):
        query, key, value = (tensor.to(precision).requires_grad_() for tensor in tensors[:3])
        if precision == torch.float64:
            output = truth(query, key, value, lengths, window)
        else:
            arguments = {"cu_seqlens": cu_seqlens, "max_seqlen": max(lengths), "scale": head_dim**-0.5}
            output = KERNELS[name](query, key, value, **arguments, window=window, dropout=0.0)
        output.backward(tensors[3].to(precision))
        results.append((output, query.grad, key.grad, value.grad))
    return tuple(relative_error(found, expected) for expected, found in zip(*results, strict=True))


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("window", [None, 16])
def test_sdpa_equals_float64(lengths: list[int], window: int | None, measured: Measured) -> None:
    errors = check("sdpa", lengths, window, device="cpu", dtype=torch.float32)
    measured("attention `sdpa`, float32, output and gradients against float64", max(errors))
    assert max(errors) < 2e-6


def test_control_attention_across_borders_would_fail(measured: Measured) -> None:
    query, key, value = (torch.randn(30, 2, 8) for _ in range(3))
    apart = truth(query, key, value, [10, 20], None)
    together = truth(query, key, value, [30], None)
    measured("control: attention across the borders of conversations", relative_error(together, apart))
    assert relative_error(together, apart) > 0.1


def test_dropout_is_applied_by_the_reference() -> None:
    query, key, value = (torch.ones(32, 2, 8) for _ in range(3))
    cu_seqlens = torch.tensor([0, 32], dtype=torch.int32)
    output = attention_sdpa(
        query, key, value, cu_seqlens=cu_seqlens, max_seqlen=32, scale=1.0, window=None, dropout=0.5
    )
    assert not torch.allclose(output, torch.ones_like(output))


def test_what_cannot_run_is_refused_with_the_reason() -> None:
    assert choose_attention("auto", device=torch.device("cpu"), dtype=torch.float32, dropout=0.1) == "sdpa"
    with pytest.raises(UserError, match=r"`varlen` cannot be used: it needs a CUDA GPU; usable here: sdpa"):
        choose_attention("varlen", device=torch.device("cpu"), dtype=torch.float32, dropout=0.0)


LONG = [900, 2_500, 1, 37]


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("name", "lengths"),
    [(name, lengths) for name in sorted(COMPILABLE) for lengths in (*LENGTHS, LONG, [8_192])]
    + [
        (name, LONG) for name in EXACT_KERNELS
    ],  # `flex` is compiled for every shape; the short ones are tested in float32
)
@pytest.mark.parametrize("window", [None, 128])
def test_gpu_kernels(name: str, lengths: list[int], window: int | None, measured: Measured) -> None:
    """bfloat16 kernels and gradients: within 1 % of float64 (bfloat16 itself rounds by up to 0.4 %)."""
    try:
        choose_attention(name, device=torch.device("cuda", 0), dtype=torch.bfloat16, dropout=0.0)
    except UserError as error:
        pytest.skip(str(error))  # the package is not installed on this machine
    errors = check(name, lengths, window, device="cuda", dtype=torch.bfloat16, head_dim=128)
    measured(f"attention `{name}`, bfloat16, output and gradients against float64", max(errors))
    assert max(errors) < 1e-2


@pytest.mark.gpu
@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("window", [None, 16])
@pytest.mark.parametrize("name", EXACT_KERNELS)
def test_gpu_kernels_in_float32(name: str, lengths: list[int], window: int | None, measured: Measured) -> None:
    errors = check(name, lengths, window, device="cuda", dtype=torch.float32)
    measured(f"attention `{name}`, float32 on the GPU, output and gradients against float64", max(errors))
    assert max(errors) < EXACT_KERNELS[name]
