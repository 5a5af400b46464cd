"""A model of a few thousand parameters, and its gradients as one vector."""

from __future__ import annotations

from typing import Any

import torch
import transformers

from ochat_train.model.attention.register import register_attention
from tests.support.small_recipe import TINY_MODEL

VOCAB = 300


def tiny_model(**changes: Any) -> Any:
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(**{**TINY_MODEL, "vocab_size": VOCAB, **changes})
    model = transformers.AutoModelForCausalLM.from_config(
        config, dtype=torch.float32, attn_implementation=register_attention("sdpa")
    )
    return model.train()


def gradients(model: Any) -> torch.Tensor:
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
