"""What an adapter's training changes, under the names that PEFT gives it in a file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ochat_train.adapter.build import ADAPTER
from ochat_train.adapter.token_rows import ROWS

LEAD = "base_model.model."  # PEFT's wrapper around a model
TOKEN_ROWS = "token_adapter.trainable_tokens_delta"
_MAGNITUDE = "lora_magnitude_vector"


def adapter_tensors(causal_lm: Any) -> dict[str, torch.Tensor]:
    """Every trained tensor of a causal LM with an adapter, by PEFT's name, in the order of the model."""
    return peft_tensors({name: p.detach() for name, p in causal_lm.named_parameters() if p.requires_grad})


def peft_tensors(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Trained tensors by PEFT's names. tensors: by their names in the causal LM, as `named_parameters` gives them."""
    return {peft_name(name): tensor for name, tensor in tensors.items()}


def peft_name(name: str) -> str:
    """The name that `peft.get_peft_model_state_dict` gives a trained tensor, from its name in the causal LM.

    Raises ValueError for a name that is not of an adapter.
    """
    module, mark, _ = name.partition(f".{ROWS}.")
    if mark:
        return f"{LEAD}{module}.{TOKEN_ROWS}"
    parts = name.split(".")
    if ADAPTER not in parts or not any(part.startswith("lora_") for part in parts):
        raise ValueError(f"{name} is not a tensor of an adapter")
    if _MAGNITUDE in parts:
        parts.remove("weight")
    return LEAD + ".".join(part for part in parts if part != ADAPTER)
