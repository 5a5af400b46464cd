"""What a model of `transformers` passes to its attention function, and the refusal of what no kernel computes.

Models pass everything that is special about their attention (sinks, soft-capping, ...) as keyword arguments. Dropping
one would silently train a different model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from data_pipeline.errors import UserError

REMEDY = "use another base, such as Mistral, Llama, Qwen2 or Qwen3"

# Keywords that change no number here: query and key already contain positions, there is no cache, and the rest only
# asks for more outputs.
_HARMLESS = frozenset(
    ("position_ids", "use_cache", "output_attentions", "output_hidden_states", "output_router_logits")
)
_EXPLANATIONS = {
    "attention_mask": "its own mask",
    "sinks": "attention sinks",
    "position_bias": "a bias on attention scores",
    "indices": "sparse attention",
    "block_indices": "sparse attention",
    "is_causal": "attention to later tokens",
}


def refuse_unused(module: torch.nn.Module, unused: Mapping[str, Any]) -> None:
    """Raise UserError for a keyword that would change the result, and that no kernel takes."""
    for name, value in unused.items():
        if value is None or name in _HARMLESS or (name == "is_causal" and value is True):
            continue
        what = f"`{name}` ({_EXPLANATIONS[name]})" if name in _EXPLANATIONS else f"`{name}`"
        raise UserError("model", f"{_name(module)} needs {what}, which no attention kernel here computes", REMEDY)


def without_borders(module: torch.nn.Module) -> UserError:
    """The error for a model that does not pass the keyword arguments of its `forward` on to the attention function."""
    return UserError(
        "model",
        f"{_name(module)} does not pass `cu_seqlens` to its attention function, so conversations of a pack would see "
        "each other",
        REMEDY,
    )


def _name(module: torch.nn.Module) -> str:
    config = getattr(module, "config", None)
    base = getattr(config, "model_type", None)
    return f"{type(module).__name__} of `transformers`" + (f" (base `{base}`)" if base else "")
