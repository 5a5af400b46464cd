"""torch's own attention kernels for packs."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F

from data_pipeline.errors import UserError

AttentionKernel = Callable[..., torch.Tensor]


def attention_sdpa(
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
    """The reference: torch's scaled dot product, one conversation at a time, on any device and in any precision.

    window: a token sees itself and the `window - 1` tokens before it; None sees all before it.
    """
    outputs = []
    lengths = [end - start for start, end in pairwise(cu_seqlens.tolist())]
    # `split` and not slices: its backward pass is one concatenation instead of a zero-filled pack per conversation
    conversations = zip(
        *(x.transpose(0, 1).split(lengths, dim=1) for x in (query_THD, key_TGD, value_TGD)), strict=True
    )
    for length, tensors in zip(lengths, conversations, strict=True):
        if not length:
            continue
        query, key, value = (x[None] for x in tensors)
        mask = None
        if window is not None and length > window:
            distance = torch.arange(length, device=query.device)
            distance = distance[:, None] - distance[None, :]
            mask = (distance >= 0) & (distance < window)
        output = F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=mask is None, scale=scale, dropout_p=dropout, enable_gqa=True
        )
        outputs.append(output[0].transpose(0, 1))
    return torch.cat(outputs)


def attention_varlen(
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
    """torch's own variable-length kernel (FlashAttention-2), CUDA, half precision."""
    varlen_attn, style = torch_varlen()
    arguments: dict[str, Any] = {"scale": scale}
    if style == "is_causal":  # torch 2.10
        if window is not None and max_seqlen > window:
            raise UserError(
                "model.attention", "this torch's varlen kernel has no sliding window", "use torch 2.11 or flash-attn"
            )
        arguments["is_causal"] = True
    else:
        arguments["window_size"] = (-1 if window is None else window - 1, 0)
        if style == "enable_gqa":
            arguments["enable_gqa"] = True
    result: torch.Tensor = varlen_attn(
        query_THD, key_TGD, value_TGD, cu_seqlens, cu_seqlens, max_seqlen, max_seqlen, **arguments
    )
    return result


@cache
def torch_varlen() -> tuple[Callable[..., Any], str]:
    """torch's function and which of its three signatures it has."""
    from torch.nn.attention.varlen import varlen_attn

    names = inspect.signature(varlen_attn).parameters
    style = "enable_gqa" if "enable_gqa" in names else "window_size" if "window_size" in names else "is_causal"
    return varlen_attn, style
