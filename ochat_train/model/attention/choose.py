"""Which attention kernel a model uses on a machine, and why not another."""

from __future__ import annotations

import torch

from data_pipeline.errors import UserError
from ochat_train.model.attention.kernels import KERNELS
from ochat_train.model.attention.needs import AttentionNeeds


def choose_attention(wanted: str, *, device: torch.device, dtype: torch.dtype, needs: AttentionNeeds) -> str:
    """The kernel to use: `wanted`, or for `auto` the fastest one that is installed and fits.

    needs: what the model's attention asks for; only kernels that compute all of it fit.
    Raises UserError where `wanted` cannot run, with what is missing.
    """
    obstacles = attention_obstacles(device=device, dtype=dtype, needs=needs)
    if wanted == "auto":
        return next(name for name, obstacle in obstacles.items() if obstacle is None)
    if obstacles[wanted] is not None:
        usable = ", ".join(name for name, obstacle in obstacles.items() if obstacle is None)
        raise UserError("model.attention", f"`{wanted}` cannot be used: {obstacles[wanted]}", f"usable here: {usable}")
    return wanted


def attention_obstacles(*, device: torch.device, dtype: torch.dtype, needs: AttentionNeeds) -> dict[str, str | None]:
    """Every kernel, the fastest first, with the reason why it cannot be used here, or None."""
    return {name: kernel.obstacle(device=device, dtype=dtype, needs=needs) for name, kernel in KERNELS.items()}


def missing_packages() -> dict[str, str | None]:
    """Every kernel, the fastest first, with what to say of a package that this machine lacks, or None.

    For machines without a GPU, where `attention_obstacles` could only say so.
    """
    return {name: kernel.missing_package() for name, kernel in KERNELS.items()}
