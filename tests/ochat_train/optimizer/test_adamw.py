"""AdamW on small states against torch's AdamW in float64."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from ochat_train.optimizer import adamw
from ochat_train.optimizer.adamw import SmallAdamW, wide_state
from ochat_train.optimizer.size import STATE_SIZES

SETTINGS: dict[str, Any] = {"lr": 1e-4, "betas": (0.9, 0.95), "eps": 1e-5, "weight_decay": 0.1}
SIZES = (5000, 640, 77)  # of parameters: with a rest, whole blocks, less than a block


def start_weights(dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(size, generator=generator) * 0.02).to(dtype) for size in SIZES]


def optimizer_of(states: str, dtype: torch.dtype, *, seed: int = 3, **changes: Any) -> SmallAdamW:
    parameters = [torch.nn.Parameter(weight) for weight in start_weights(dtype)]
    return SmallAdamW([{"params": [one]} for one in parameters], **{**SETTINGS, **changes}, states=states, seed=seed)


def parameters_of(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def take_steps(optimizer: torch.optim.Optimizer, steps: range) -> None:
    """Steps with gradients that are the same for every optimizer."""
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for parameter in parameters_of(optimizer):
            gradient = (torch.randn(parameter.numel(), generator=generator) + 0.1) * 1e-2
            parameter.grad = gradient.to(parameter.dtype)
        optimizer.step()


def values_of(optimizer: SmallAdamW) -> list[torch.Tensor]:
    """Weights and all states."""
    found = []
    for parameter in parameters_of(optimizer):
        states = [value for value in optimizer.state[parameter].values() if isinstance(value, torch.Tensor)]
        found += [parameter.detach().clone(), *states]
    return found


@pytest.mark.parametrize(("states", "bound"), [("8bit", 0.06), ("bfloat16", 0.006)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_updates_are_those_of_adamw(states: str, bound: float, dtype: torch.dtype) -> None:
    """The way that weights go in 100 steps, against float64. The control: without weight decay it is another."""
    reference = torch.optim.AdamW([torch.nn.Parameter(weight.double()) for weight in start_weights(dtype)], **SETTINGS)
    take_steps(reference, range(100))
    errors = []
    for decay in (0.1, 3.0):
        optimizer = optimizer_of(states, dtype, weight_decay=decay)
        take_steps(optimizer, range(100))
        found = [wide_state(optimizer.state[one], one.detach())["fp32"] for one in parameters_of(optimizer)]
        ways = zip(found, parameters_of(reference), start_weights(dtype), strict=True)
        pairs = [((one - start).double(), (truth - start).detach()) for one, truth, start in ways]
        errors.append(max(float((one - truth).norm() / truth.norm()) for one, truth in pairs))
    assert errors[0] < bound < errors[1]


def test_a_bfloat16_weight_alone_would_go_another_way() -> None:
    """Why 8 bits are kept beside it: without them its steps are random."""
    errors = []
    for keeps in (True, False):
        optimizer, truth = optimizer_of("8bit", torch.bfloat16), optimizer_of("8bit", torch.float32)
        for step in range(50):
            for one in (optimizer, truth):
                take_steps(one, range(step, step + 1))
            if not keeps:
                for state in optimizer.state.values():
                    state["rest"].zero_()
        ends = [[one.detach().float() for one in parameters_of(found)] for found in (optimizer, truth)]
        pairs = zip(*ends, start_weights(torch.bfloat16), strict=True)
        errors.append(max(float((one - end).norm() / (end - start).norm()) for one, end, start in pairs))
    assert errors[0] < 0.1 < errors[1]


@pytest.mark.parametrize("states", ["8bit", "bfloat16"])
def test_a_loaded_state_goes_on_bit_equal(states: str) -> None:
    """The control: another seed rounds in another way."""
    straight = optimizer_of(states, torch.bfloat16)
    take_steps(straight, range(3))
    saved = copy.deepcopy(straight.state_dict())
    weights = [parameter.detach().clone() for parameter in parameters_of(straight)]
    take_steps(straight, range(3, 6))
    for seed, is_same in ((3, True), (4, False)):
        resumed = optimizer_of(states, torch.bfloat16, seed=seed)
        with torch.no_grad():
            for parameter, weight in zip(parameters_of(resumed), weights, strict=True):
                parameter.copy_(weight)
        resumed.load_state_dict(copy.deepcopy(saved))
        take_steps(resumed, range(3, 6))
        pairs = zip(values_of(resumed), values_of(straight), strict=True)
        assert all(one.dtype == other.dtype and torch.equal(one, other) for one, other in pairs) == is_same


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_chunks_change_nothing(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = optimizer_of("8bit", dtype)
    take_steps(whole, range(3))
    monkeypatch.setitem(adamw._CHUNKS, "cpu", 512)
    chunked = optimizer_of("8bit", dtype)
    take_steps(chunked, range(3))
    assert all(map(torch.equal, values_of(whole), values_of(chunked)))


def test_two_parts_of_whole_blocks_are_updated_as_the_whole() -> None:
    """As ZeRO cuts a tensor: rounding belongs to a number's place, not to a rank. The control: both as the first
    part.
    """
    weights = start_weights(torch.bfloat16)[1].repeat(2)  # two times 640
    gradients = torch.randn(1280, generator=torch.Generator().manual_seed(9)).to(torch.bfloat16)

    def updated(weight: torch.Tensor, gradient: torch.Tensor, part: int) -> list[torch.Tensor]:
        parameter = torch.nn.Parameter(weight.clone())
        parameter.grad = gradient
        optimizer = SmallAdamW([parameter], **SETTINGS, states="8bit", seed=3, part=part)
        optimizer.step()
        return values_of(optimizer)

    whole = updated(weights, gradients, 0)
    first = updated(weights[:640], gradients[:640], 0)
    for part, is_same in ((1, True), (0, False)):
        second = updated(weights[640:], gradients[640:], part)
        pairs = zip(whole, first, second, strict=True)
        assert all(torch.equal(one, torch.cat((left, right))) for one, left, right in pairs) == is_same


@pytest.mark.parametrize("states", ["8bit", "bfloat16"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_wide_states_are_stored_as_they_were(states: str, dtype: torch.dtype) -> None:
    """As a checkpoint is converted for another number of GPUs; the bytes are those that are planned."""
    optimizer = optimizer_of(states, dtype)
    take_steps(optimizer, range(3))
    before = [value.clone() for value in values_of(optimizer)]
    for number, parameter in enumerate(parameters_of(optimizer)):
        wide = wide_state(optimizer.state[parameter], parameter.detach().clone())
        with torch.no_grad():
            parameter.zero_()
        optimizer.set_wide_state(parameter, number=number, **wide)
    assert all(map(torch.equal, before, values_of(optimizer)))
    [parameter] = [one for one in parameters_of(optimizer) if one.numel() == 640]
    held = [value for value in optimizer.state[parameter].values() if isinstance(value, torch.Tensor)]
    size = STATE_SIZES[states].per_parameter(bfloat16=dtype == torch.bfloat16)
    assert sum(value.numel() * value.element_size() for value in held) == 640 * size


@pytest.mark.gpu
@pytest.mark.parametrize("states", ["8bit", "bfloat16"])
@pytest.mark.parametrize("offset", [0, 2])
def test_the_compiled_update_on_a_gpu_is_that_of_the_cpu(states: str, offset: int) -> None:
    """Kernels may round a logarithm otherwise, so a few codes are one apart. offset: parts of ZeRO begin anywhere."""
    found = []
    for device in ("cpu", "cuda"):
        generator = torch.Generator().manual_seed(0)
        flat = (torch.randn(200_000 + offset, generator=generator) * 0.02).to(torch.bfloat16).to(device)[offset:]
        gradients = [torch.randn(200_000, generator=generator) * 1e-2 for _ in range(5)]
        parameter = torch.nn.Parameter(flat)
        optimizer = SmallAdamW([parameter], **SETTINGS, states=states, seed=3, compiled=device == "cuda")
        for gradient in gradients:
            parameter.grad = gradient.to(torch.bfloat16).to(device)
            optimizer.step()
        wide = wide_state(optimizer.state[parameter], parameter.detach())
        found.append({name: wide[name].cpu() for name in ("fp32", "exp_avg", "exp_avg_sq")})
    for name, expected in found[0].items():
        difference = (found[1][name] - expected).abs()
        assert float((difference > 1e-6 * expected.abs()).float().mean()) < 0.03, name
        assert float(difference.norm() / expected.norm()) < 3e-3, name
