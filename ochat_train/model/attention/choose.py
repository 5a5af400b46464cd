"""Attention over packs: conversations never see each other. The only file that touches attention kernels.

`transformers` models take their attention from a registry; ours is registered under one name and reads `cu_seqlens`
from the keyword arguments that the model hands down. Shape letters: B batch (1), H heads, G key/value heads, T tokens
of a pack, D head dimension.
"""

from __future__ import annotations

import importlib.util

import torch

from data_pipeline.errors import UserError
from ochat_train.model.attention.flash_attn import attention_flash_2, attention_flash_3, attention_flash_4
from ochat_train.model.attention.flex import attention_flex
from ochat_train.model.attention.torch_kernels import AttentionKernel, attention_sdpa, attention_varlen

# flash-attn-4 builds its kernels in Python, which torch.compile cannot trace; as operators of torch they are single
# nodes.


KERNELS: dict[str, AttentionKernel] = {
    "flash_attention_4": attention_flash_4,
    "flash_attention_3": attention_flash_3,
    "flash_attention_2": attention_flash_2,
    "varlen": attention_varlen,
    "flex": attention_flex,
    "sdpa": attention_sdpa,
}


# Kernels inside which torch.compile sees no Python: `flex` compiles itself, `sdpa` asks for lengths.
COMPILABLE = frozenset(("flash_attention_4", "flash_attention_3", "flash_attention_2", "varlen"))


def choose_attention(wanted: str, *, device: torch.device, dtype: torch.dtype, dropout: float) -> str:
    """The kernel to use: `wanted`, or for `auto` the fastest one that is installed and fits.

    dropout: the model's attention dropout; only kernels that have dropout fit a model that uses it.
    Raises UserError where `wanted` cannot run, with what is missing.
    """
    obstacles = attention_obstacles(device=device, dtype=dtype, dropout=dropout)
    if wanted == "auto":
        return next(name for name, obstacle in obstacles.items() if obstacle is None)
    if obstacles[wanted] is not None:
        usable = ", ".join(name for name, obstacle in obstacles.items() if obstacle is None)
        raise UserError("model.attention", f"`{wanted}` cannot be used: {obstacles[wanted]}", f"usable here: {usable}")
    return wanted


def attention_obstacles(*, device: torch.device, dtype: torch.dtype, dropout: float) -> dict[str, str | None]:
    """Every kernel, the fastest first, with what keeps it from being used here, or None."""
    return {name: _obstacle(name, device, dtype, dropout) for name in KERNELS}


def missing_packages() -> dict[str, str | None]:
    """Every kernel, the fastest first, with the package that it lacks on this machine, or None; whatever GPU is
    there.
    """
    return {name: _missing_package(name) for name in KERNELS}


def _obstacle(name: str, device: torch.device, dtype: torch.dtype, dropout: float) -> str | None:
    """Why a kernel cannot be used here, None where it can."""
    if name == "sdpa":
        return None
    if device.type != "cuda":
        return "it needs a CUDA GPU"
    if dtype not in (torch.bfloat16, torch.float16) and name != "flex":
        return "it needs bfloat16"
    if dropout and name in ("varlen", "flash_attention_4", "flash_attention_3", "flex"):
        return f"it has no dropout, and the model's attention_dropout is {dropout}"
    if name == "flash_attention_4" and torch.cuda.get_device_capability(device)[0] < 9:
        return "it needs a Hopper GPU or later"
    if name == "flash_attention_3" and torch.cuda.get_device_capability(device)[0] != 9:
        return "it needs a Hopper GPU"
    return _missing_package(name)


def _missing_package(name: str) -> str | None:
    if name == "sdpa":
        return None
    if name == "flex":
        return None if _is_installed("triton") else "the package triton is not installed"
    if name == "flash_attention_4":
        return None if _is_installed("flash_attn.cute") else "the package flash-attn-4 is not installed (extra `gpu`)"
    if name == "flash_attention_3":
        return None if _is_installed("flash_attn_interface") else "the package flash_attn_3 is not installed"
    if name == "flash_attention_2":
        installed = _is_installed("flash_attn.flash_attn_interface")
        return None if installed else "the package flash-attn is not installed (extra `flash-attn`)"
    return None if _is_installed("torch.nn.attention.varlen") else "this torch has no varlen kernel; use 2.10 or later"


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False
