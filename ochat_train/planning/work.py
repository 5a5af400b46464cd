"""Floating-point operations of a model, and what GPUs can do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ochat_train.model.config import head_dimension

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
    return Work(
        matmul_parameters=sum(module.weight.numel() for module in linears),
        attention_width=config.num_attention_heads * head_dimension(config),
        num_layers=config.num_hidden_layers,
    )


def peak_flops(device: torch.device) -> float | None:
    """Dense bfloat16 FLOP/s of a GPU, None for one that is not in the table, and for a CPU."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAK_FLOPS.items() if part in name), None)
