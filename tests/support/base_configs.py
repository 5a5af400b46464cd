"""Small `transformers` configs of bases with something special, and kernels with a fault."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import transformers

from ochat_train.model.attention.kernel import Kernel
from ochat_train.model.attention.kernels import KERNELS

SHAPES: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
}


def base_config(model_type: str, **changes: Any) -> Any:
    return transformers.AutoConfig.for_model(model_type, **{**SHAPES, **changes})


def broken_kernel(name: str, **changes: Callable[[Any], Any]) -> Kernel:
    """A kernel that runs as `name`, but with changed keyword arguments, such as `window=lambda window: None`."""
    kernel = KERNELS[name]

    def run(
        query_THD: torch.Tensor, key_TGD: torch.Tensor, value_TGE: torch.Tensor, /, **keywords: Any
    ) -> torch.Tensor:
        keywords |= {key: change(keywords[key]) for key, change in changes.items()}
        return kernel.run(query_THD, key_TGD, value_TGE, **keywords)

    return replace(kernel, run=run)
