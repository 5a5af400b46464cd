"""FlashAttention-2, the package `flash-attn`."""

from __future__ import annotations

import torch

from ochat_train.model.attention.kernel import HALF_PRECISION, Kernel


def attention_flash_2(
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
    from flash_attn import flash_attn_varlen_func  # type: ignore[import-not-found, unused-ignore]

    result: torch.Tensor = flash_attn_varlen_func(
        query_THD,
        key_TGD,
        value_TGD,
        cu_seqlens,
        cu_seqlens,
        max_seqlen,
        max_seqlen,
        dropout_p=dropout,
        softmax_scale=scale,
        causal=True,
        window_size=(-1, -1) if window is None else (window - 1, 0),
    )
    return result


KERNEL = Kernel(
    name="flash_attention_2",
    run=attention_flash_2,
    compilable=True,
    has_dropout=True,
    dtypes=HALF_PRECISION,
    module="flash_attn.flash_attn_interface",
    if_missing="the package flash-attn is not installed (extra `flash-attn`)",
    saved_operators=("flash_attn._flash_attn_varlen_forward.default",),
)
