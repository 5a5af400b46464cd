"""Gradients of many packs summed in float32 beside a bfloat16 model."""

from __future__ import annotations

import torch

from ochat_train.training.engine import parameter_groups
from ochat_train.training.gradient_sum import GradientSum
from tests.support.measured import Measured
from tests.support.reference import relative_error

NUM_BACKWARDS = 64


def summed(factors: torch.Tensor, *, in_float32: bool) -> tuple[torch.Tensor, torch.nn.Parameter]:
    """The gradient of a bfloat16 parameter after as many backward passes as there are rows, each row one gradient."""
    parameter = torch.nn.Parameter(torch.zeros(factors.shape[1], dtype=torch.bfloat16))
    if in_float32:
        GradientSum([parameter], num_backwards=len(factors))
    for row in factors:
        (parameter * row).sum().backward()
    assert parameter.grad is not None
    return parameter.grad, parameter


def test_sums_are_rounded_once(measured: Measured) -> None:
    """Against the float64 sum of the same gradients; the control, plain bfloat16, loses small gradients beside the
    sum.
    """
    factors = torch.rand(NUM_BACKWARDS, 1000, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    expected = factors.double().sum(0)
    ours, plain = (relative_error(summed(factors, in_float32=wide)[0], expected) for wide in (True, False))
    measured("sum of 64 bfloat16 gradients in float32, against float64", ours)
    measured("control: the same sum in bfloat16", plain)
    assert torch.equal(summed(factors, in_float32=True)[0], factors.float().sum(0).to(torch.bfloat16))
    assert ours < 2**-9
    assert plain > 3 * ours


def test_a_second_step_begins_anew() -> None:
    """Between backward passes `grad` is None; after a step is taken, its sum is forgotten."""
    parameter = torch.nn.Parameter(torch.zeros(3, dtype=torch.bfloat16))
    GradientSum([parameter], num_backwards=2)
    for step in (1.0, 4.0):
        (parameter * step).sum().backward()
        assert parameter.grad is None
        (parameter * step).sum().backward()
        assert parameter.grad is not None
        assert parameter.grad.tolist() == [2 * step] * 3
        parameter.grad = None


def test_groups_of_parameters_keep_their_order_and_size() -> None:
    parameters = [torch.nn.Parameter(torch.zeros(size)) for size in (3, 4, 9, 1, 1, 1)]
    groups = parameter_groups(parameters, most_elements=7)
    assert [[parameter.numel() for parameter in group] for group in groups] == [[3, 4], [9], [1, 1, 1]]
    assert [id(parameter) for group in groups for parameter in group] == [id(parameter) for parameter in parameters]
