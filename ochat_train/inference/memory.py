"""How many tokens of keys and values fit into free memory, on a GPU or in RAM."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from data_pipeline.errors import UserError
from ochat_train.model.base_class import text_config
from ochat_train.model.config import layer_widths
from ochat_train.system.sizes import GIB

_GPU_RATIO = 0.8  # of the memory that is free after loading; the rest is for activations and logits
_RAM_RATIO = 0.25  # other programs need RAM too
_MOST_RAM = 4 * GIB


@dataclass(frozen=True, kw_only=True)
class CacheSize:
    """num_tokens: of all answers together. num_answers: how many are computed at once at most."""

    num_tokens: int
    num_answers: int


def cache_size(model: Any, *, context_tokens: int, most_answers: int, extra_bytes_per_token: int = 0) -> CacheSize:
    """Room for keys and values beside a loaded model.

    context_tokens: of one answer with its prompt; there is room for one such at least. most_answers: no more at once.
    extra_bytes_per_token: what each cached token needs beside its keys and values. Raises UserError where memory does
    not even hold one answer.
    """
    per_token = max(1, kv_bytes_per_token(model) + extra_bytes_per_token)  # 0 where no layer has attention
    free = free_bytes(model.device)
    num_tokens = min(int(free // per_token), context_tokens * most_answers)
    if num_tokens < context_tokens:
        needed, where = context_tokens * per_token / GIB, "GPU memory" if model.device.type == "cuda" else "RAM"
        problem = f"one answer of {context_tokens} tokens needs {needed:.2f} GiB; {free / GIB:.2f} GiB may be used"
        raise UserError(where, problem, "use a smaller `--max-model-len`")
    return CacheSize(num_tokens=num_tokens, num_answers=max(1, min(most_answers, num_tokens // context_tokens)))


def kv_bytes_per_token(model: Any) -> int:
    """Bytes of keys and values of one token in all layers.

    Latent attention (MLA, DeepSeek) may cache what keys and values are computed from, which is tens of times smaller.
    Which of the two `transformers` does depends on its version, so the model is asked. Each layer in its turn then
    makes the keys and values of all cached tokens, so those of one layer count as well.
    """
    widths, config = layer_widths(model.config), text_config(model.config)
    layer_bytes = (widths.key + widths.value) * model.dtype.itemsize
    expanded = int(config.num_hidden_layers * layer_bytes)
    if not is_latent(config):
        return expanded
    return min(expanded, _cached_bytes_per_token(model) + int(layer_bytes))


def is_latent(config: Any) -> bool:
    """Whether a text config is that of a model with latent attention."""
    return getattr(config, "kv_lora_rank", None) is not None


@torch.no_grad()
def _cached_bytes_per_token(model: Any) -> int:
    """What the cache of a loaded model holds for each token, seen on two tokens."""
    tokens = torch.zeros((1, 2), dtype=torch.int64, device=model.device)
    layers = model(input_ids=tokens, use_cache=True).past_key_values.layers
    return int(sum(layer.keys.nbytes + layer.values.nbytes for layer in layers) // tokens.numel())


def free_bytes(device: torch.device) -> float:
    """Bytes that an engine may take of the memory that is free on a device."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free * _GPU_RATIO
    return min(_free_ram() * _RAM_RATIO, _MOST_RAM)


def _free_ram() -> float:
    """Free RAM in bytes, by the kernel and by the limit of a container, whichever is less."""
    free = float(_MOST_RAM / _RAM_RATIO)  # where the kernel does not say, as on other systems than Linux
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free = float(next(line.split()[1] for line in lines if line.startswith("MemAvailable:"))) * 1024
    with contextlib.suppress(OSError, ValueError):  # "max" where there is no limit
        folder = Path("/sys/fs/cgroup")
        limit, used = (int((folder / name).read_text()) for name in ("memory.max", "memory.current"))
        free = min(free, max(limit - used, 0))
    return free
