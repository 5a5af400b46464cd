"""Floating-point operations of a training step, and which share of a GPU's peak that is (model FLOPs utilization)."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch

# Dense bfloat16 FLOP/s by a part of the device's name, from the vendor's data sheets; the first that fits counts.
PEAK_FLOPS = {
    "GB200": 2.5e15,
    "B300": 2.25e15,
    "B200": 2.25e15,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H200": 989e12,
    "GH200": 989e12,
    "H800": 989e12,
    "H20": 148e12,
    "A100": 312e12,
    "A800": 312e12,
    "L40S": 362e12,
    "RTX 4090": 165e12,
}


@dataclass(frozen=True, kw_only=True)
class Work:
    """Operations per token of a model: 6 for each parameter of a matrix product (2 forward, 4 backward; embeddings look
    up and do none), and causal attention's 6 * layers * attention width * length of the conversation so far on average,
    that is 6 * layers * width * sum of squared lengths over conversations. Recomputed operations do not count, nor does
    padding.
    """

    matmul_parameters: int
    attention_width: int
    num_layers: int

    def flops(self, *, num_tokens: float, squared_lengths: float) -> float:
        """Operations of a step with so many tokens; squared_lengths: sum of squared conversation lengths."""
        return 6.0 * (self.matmul_parameters * num_tokens + self.num_layers * self.attention_width * squared_lengths)


def work_of(causal_lm: Any) -> Work:
    """The work of a model, before an engine has taken its parameters apart."""
    config = causal_lm.config
    linears = [module for module in causal_lm.modules() if isinstance(module, torch.nn.Linear)]
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return Work(
        matmul_parameters=sum(module.weight.numel() for module in linears),
        attention_width=config.num_attention_heads * head_dim,
        num_layers=config.num_hidden_layers,
    )


def peak_flops(device: torch.device) -> float | None:
    """Dense bfloat16 FLOP/s of a GPU, None for one that is not in the table, and for a CPU."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAK_FLOPS.items() if part in name), None)


class Meter:
    """Speed of steps: tokens per second, share of the GPUs' peak, memory, and the share of time spent waiting for
    data.
    """

    def __init__(self, work: Work, device: torch.device, *, num_ranks: int) -> None:
        self._work = work
        self._device = device
        self._num_ranks = num_ranks
        self._peak = peak_flops(device)
        self._start = (0.0, 0.0)

    def start(self, *, waited_seconds: float) -> None:
        """A step begins. waited_seconds: how long this rank has waited for data so far."""
        self._start = time.monotonic(), waited_seconds

    def stop(self, *, num_tokens: int, squared_lengths: float, waited_seconds: float) -> dict[str, float | None]:
        """A step has ended, of so many tokens and such a sum of squared lengths over all ranks; metrics of the step.

        `mfu` is null where the GPU's peak is not known, `memory_gib` (the most that this rank's GPU has held) on a CPU.
        """
        seconds = time.monotonic() - self._start[0]
        flops = self._work.flops(num_tokens=num_tokens, squared_lengths=squared_lengths)
        is_gpu = self._device.type == "cuda"
        return {
            "tokens_per_second": num_tokens / seconds,
            "mfu": flops / seconds / self._num_ranks / self._peak if self._peak else None,
            "memory_gib": torch.cuda.max_memory_allocated(self._device) / 2**30 if is_gpu else None,
            "data_wait_ratio": (waited_seconds - self._start[1]) / seconds,
        }
