"""Random weights with which every part of a model matters: norms off 1, biases and sinks off 0, scores of some size."""

from __future__ import annotations

import re
from typing import Any

import torch

GAINS = (1.5, 1.0, 0.5)
"""Standard deviation of a linear module's outputs for inputs of 1; smaller ones for models that overflow."""

_BIAS_BUFFER = re.compile(r"bias|correction")


@torch.no_grad()
def set_random_weights(causal_lm: Any, *, gain: float, seed: int) -> None:
    """Draw every parameter of a model on the CPU, in place, the same for the same seed.

    What `transformers` starts with stays the middle for vectors: a norm's scale, a decay, the bias of a time step.
    """
    generator = torch.Generator().manual_seed(seed)
    embedding = causal_lm.get_input_embeddings()
    tables = {id(parameter) for parameter in embedding.parameters()}
    for name, parameter in causal_lm.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if id(parameter) in tables:
            parameter.copy_(noise)
        elif parameter.ndim >= 2:
            fan_in = sum(parameter.shape[-2:]) / 2 if parameter.ndim > 2 else parameter.shape[-1]
            parameter.copy_(gain / fan_in**0.5 * noise)
        elif "sink" in name:
            parameter.copy_(2.0 + noise)
        else:
            parameter.add_(0.3 * noise)
    for name, buffer in causal_lm.named_buffers():
        if buffer.is_floating_point() and _BIAS_BUFFER.search(name.rpartition(".")[2]):
            buffer.add_(0.1 * torch.randn(buffer.shape, generator=generator))
