"""Floating-point operations of a model, and what GPUs can do."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from ochat_train.model.base_class import backbone, text_config
from ochat_train.model.config import layer_widths
from ochat_train.model.experts import expert_layers

# Dense bfloat16 FLOP/s by a part of the device's name, from the vendor's data sheets. The first match counts.
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
    """Shapes of a model that decide its floating-point operations.

    operations = (6 * matmul_parameters - 2 * frozen_parameters) * tokens
                 + 6 * layers * attention_width * sum over conversations of length^2

    The first term is 2 forward and 4 backward for each parameter of a matrix product (embeddings are looked up), or 2
    backward where it is not trained; the second is causal attention. Recomputed operations and padding do not count.
    matmul_parameters: of linear modules, and the share of a layer's experts that a token uses. attention_width: heads
    times head dimension, the mean of that of queries and that of values. num_layers: those with attention.
    frozen_parameters: of matmul_parameters, those that are not trained, because an adapter is.
    """

    matmul_parameters: int
    attention_width: int
    num_layers: int
    frozen_parameters: int = 0

    def flops(self, *, num_tokens: float, squared_lengths: float) -> float:
        """Operations of a step with so many tokens; squared_lengths: sum of squared conversation lengths."""
        trained = 6.0 * (self.matmul_parameters * num_tokens + self.num_layers * self.attention_width * squared_lengths)
        return trained - 2.0 * self.frozen_parameters * num_tokens

    def with_adapter(self, num_in_products: int) -> Work:
        """The work of this model where nothing but an adapter is trained. num_in_products: of `AdapterShape`."""
        return replace(
            self,
            matmul_parameters=self.matmul_parameters + num_in_products,
            frozen_parameters=self.matmul_parameters,
        )


def work_of(causal_lm: Any) -> Work:
    """The work of a causal LM of `transformers`, with or without an adapter. To be called before DeepSpeed shards its
    parameters.
    """
    config, widths = text_config(causal_lm.config), layer_widths(causal_lm.config)
    parts = [backbone(causal_lm), causal_lm.get_output_embeddings()]
    linears = [module for part in parts for module in part.modules() if isinstance(module, torch.nn.Linear)]
    sizes = [(module.in_features * module.out_features, _is_trained(module)) for module in linears]
    sizes += [
        (parameter.numel() * getattr(config, "num_experts_per_tok", 1) // layer.num_experts, parameter.requires_grad)
        for layer in expert_layers(causal_lm)
        for parameter in layer.parameters()
        if parameter.dim() == 3
    ]
    return Work(
        matmul_parameters=sum(size for size, _ in sizes),
        frozen_parameters=sum(size for size, is_trained in sizes if not is_trained),
        attention_width=(widths.query + widths.output) // 2,
        num_layers=_num_attention_layers(config),
    )


def _is_trained(linear: torch.nn.Linear) -> bool:
    """Whether the weight has a gradient. One in 4 bits is no parameter."""
    weight = linear._parameters.get("weight")
    return weight is not None and weight.requires_grad


def _num_attention_layers(config: Any) -> int:
    """Layers with attention: in hybrids those whose type says so, else all."""
    types = getattr(config, "layer_types", None) or ["attention"] * config.num_hidden_layers
    return sum("attention" in kind and "linear" not in kind for kind in types)


def peak_flops(device: torch.device) -> float | None:
    """Dense bfloat16 FLOP/s of a GPU, None for one that is not in the table, and for a CPU."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAK_FLOPS.items() if part in name), None)
