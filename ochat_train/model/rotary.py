"""Rotary embeddings whose frequencies depend on the length of the text, for each conversation of a pack by itself.

`transformers` chooses such frequencies (`rope_type` is `longrope` or `dynamic`) by the highest position of its whole
input. In a pack that is the longest conversation, or padding: the others would be computed otherwise than alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from data_pipeline.errors import UserError

CosSin = tuple[torch.Tensor, torch.Tensor]


def choose_frequencies_per_conversation(causal_lm: Any, *, max_length_tokens: float) -> None:
    """Give every rotary embedding that needs it a `forward` that looks at each conversation's own length, in place.

    max_length_tokens: of the longest conversation. Raises UserError where `dynamic` frequencies would differ between
    conversations of more tokens than the base was made for: there would be as many as there are lengths.
    """
    for module in causal_lm.modules():
        for layer_type, kind in _rope_types(module):
            if "dynamic" in kind and max_length_tokens > module.original_max_seq_len:
                raise UserError(
                    "model.max_length_tokens",
                    f"{max_length_tokens} is more than the {module.original_max_seq_len} tokens up to which this "
                    "base's rotary frequencies (`dynamic`) are the same for all lengths",
                    f"use at most {module.original_max_seq_len}",
                )
            if layer_type is None or kind != "default":
                module.forward = partial(_forward, module, module.forward)
                break


def _rope_types(module: torch.nn.Module) -> Iterator[tuple[str | None, str]]:
    """(type of layer, kind of scaling) where the kind depends on the length. Some bases have one for each layer type.

    `rope_type` is what `transformers` itself goes by.
    """
    kinds = getattr(module, "rope_type", None)
    for layer_type, kind in kinds.items() if isinstance(kinds, dict) else [(None, kinds)]:
        if isinstance(kind, str) and ("dynamic" in kind or kind == "longrope"):
            yield layer_type, kind


def _forward(
    module: Any, forward: Callable[..., CosSin], x: torch.Tensor, position_ids: torch.Tensor, *args: Any, **kwargs: Any
) -> CosSin:
    """Cosines and sines as `forward` gives them for each conversation alone.

    x: anything of the right dtype and device. position_ids: int64[..., T], from 0 in every conversation.
    """
    is_short = conversation_lengths(position_ids) <= _longest_short(module, *args, **kwargs)
    short = forward(x, torch.where(is_short, position_ids, 0), *args, **kwargs)
    full = forward(x, position_ids, *args, **kwargs)  # by the longest conversation: right for all that are not short
    cos, sin = (torch.where(is_short[..., None], a, b) for a, b in zip(short, full, strict=True))
    return cos, sin


def _longest_short(module: Any, layer_type: str | None = None) -> int:
    """Tokens up to which the frequencies are those of a short text, as `transformers` reads them."""
    kind, parameters = module.rope_type, module.config.rope_parameters
    if layer_type is not None:
        kind, parameters = kind[layer_type], parameters[layer_type]
    if kind == "longrope":
        return int(parameters["original_max_position_embeddings"])
    return int(module.original_max_seq_len)


def conversation_lengths(position_ids: torch.Tensor) -> torch.Tensor:
    """int64[..., T]: for each token, how many tokens its conversation has. position_ids: from 0 in every one."""
    number = ((position_ids == 0).cumsum(-1) - 1).clamp(min=0)  # the rest of a text that a cache holds starts at none
    lengths = torch.zeros_like(position_ids).scatter_reduce(-1, number, position_ids + 1, "amax")
    return lengths.gather(-1, number)
