"""What a converted state needs on a GPU, where `benchmarks/many_gpus.py kill` tries it with real ranks."""

from __future__ import annotations

import torch

from ochat_train.checkpoint.reshard import place_step_counts


def loaded_optimizer(*, fused: bool | None) -> torch.optim.AdamW:
    """AdamW whose parameter is not on the CPU, with its step count there, as DeepSpeed leaves it."""
    parameter = torch.nn.Parameter(torch.empty(3, device="meta"))
    optimizer = torch.optim.AdamW([parameter], foreach=False)
    optimizer.param_groups[0]["fused"] = fused
    optimizer.state[parameter]["step"] = torch.tensor(7.0)
    return optimizer


def test_the_fused_kernel_finds_step_counts_beside_parameters() -> None:
    optimizer = loaded_optimizer(fused=True)
    place_step_counts(optimizer)
    [state] = optimizer.state.values()
    assert (state["step"].device.type, state["step"].dtype) == ("meta", torch.float32)


def test_other_kernels_keep_step_counts_on_the_cpu() -> None:
    optimizer = loaded_optimizer(fused=None)
    place_step_counts(optimizer)
    [state] = optimizer.state.values()
    assert (state["step"].device.type, state["step"].item()) == ("cpu", 7.0)


def test_counts_that_are_plain_numbers_are_left_alone() -> None:
    """As DeepSpeedCPUAdam keeps them."""
    optimizer = loaded_optimizer(fused=True)
    [state] = optimizer.state.values()
    state["step"] = 7
    place_step_counts(optimizer)
    assert state["step"] == 7
