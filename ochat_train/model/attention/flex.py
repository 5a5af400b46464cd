"""torch's FlexAttention: Triton code that is compiled for each mask, on CUDA and in any precision."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from ochat_train.model.attention.kernel import Kernel


def attention_flex(
    query_THD: torch.Tensor,
    key_TGD: torch.Tensor,
    value_TGD: torch.Tensor,
    *,
    cu_seqlens: torch.Tensor,
    max_seqlen: int,
    scale: float,
    window: int | None,
    dropout: float,
) -> torch.Tensor:
    """Arguments as in `kernel.AttentionFunction`."""
    flex_attention, _ = _compiled_flex()
    query, key, value = (x.transpose(0, 1)[None] for x in (query_THD, key_TGD, value_TGD))
    mask = _flex_mask(cu_seqlens, len(query_THD), window)
    output: torch.Tensor = flex_attention(query, key, value, block_mask=mask, scale=scale, enable_gqa=True)
    return output[0].transpose(0, 1)


@cache
def _compiled_flex() -> tuple[Callable[..., Any], Callable[..., Any]]:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    return torch.compile(flex_attention, dynamic=False), torch.compile(create_block_mask, dynamic=False)


_last_flex_mask: list[Any] = [None, None, None]  # cu_seqlens, window, mask: all layers of a pack share one


def _flex_mask(cu_seqlens: torch.Tensor, num_tokens: int, window: int | None) -> Any:
    if _last_flex_mask[0] is cu_seqlens and _last_flex_mask[1] == window:
        return _last_flex_mask[2]
    tokens = torch.arange(num_tokens, device=cu_seqlens.device, dtype=cu_seqlens.dtype)
    conversation_T = torch.searchsorted(cu_seqlens[1:], tokens, right=True)
    reach = num_tokens if window is None else window

    def visible(batch: Any, head: Any, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        return (query >= key) & (query - key < reach) & (conversation_T[query] == conversation_T[key])

    _, create_block_mask = _compiled_flex()
    mask = create_block_mask(visible, None, None, num_tokens, num_tokens, device=cu_seqlens.device)
    _last_flex_mask[:] = cu_seqlens, window, mask
    return mask


KERNEL = Kernel(
    name="flex",
    run=attention_flex,
    compilable=False,  # compiles itself
    has_dropout=False,
    module="triton",
    if_missing="the package triton is not installed",
    saved_operators=("flex_attention",),
)
