"""FlashAttention-2, the package `flash-attn`."""

from __future__ import annotations

import torch

from ochat_train.model.attention.kernel import HALF_PRECISION, Kernel, one_head_dimension
from ochat_train.model.attention.needs import AttentionNeeds


def attention_flash_2(
    query_THD: torch.Tensor,
    key_TGD: torch.Tensor,
    value_TGE: torch.Tensor,
    *,
    cu_seqlens: torch.Tensor,
    max_seqlen: int,
    scale: float,
    window: int | None,
    dropout: float,
    softcap: float | None,
    sinks_H: torch.Tensor | None,
) -> torch.Tensor:
    """Arguments as in `kernel.AttentionFunction`."""
    from flash_attn import flash_attn_varlen_func  # type: ignore[import-not-found, unused-ignore]

    result: torch.Tensor = flash_attn_varlen_func(
        query_THD,
        key_TGD,
        value_TGE,
        cu_seqlens,
        cu_seqlens,
        max_seqlen,
        max_seqlen,
        dropout_p=dropout,
        softmax_scale=scale,
        causal=True,
        window_size=(-1, -1) if window is None else (window - 1, 0),
        softcap=softcap or 0.0,
    )
    return result


def _limit(needs: AttentionNeeds, major: int) -> str | None:
    if needs.dropout and needs.softcap:
        return "it has no dropout together with soft-capped attention scores, and the model needs both"
    return one_head_dimension(needs)


KERNEL = Kernel(
    name="flash_attention_2",
    run=attention_flash_2,
    compilable=True,
    has_dropout=True,
    has_softcap=True,
    has_sinks=False,
    dtypes=HALF_PRECISION,
    limit=_limit,
    module="flash_attn.flash_attn_interface",
    if_missing="the package flash-attn is not installed (extra `flash-attn`)",
    saved_operators=("flash_attn._flash_attn_varlen_forward.default",),
)
