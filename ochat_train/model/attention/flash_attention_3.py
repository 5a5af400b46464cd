"""FlashAttention-3 (Hopper), the package `flash_attn_3`."""

from __future__ import annotations

import torch

from ochat_train.model.attention.kernel import HALF_PRECISION, Kernel, one_head_dimension


def attention_flash_3(
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
    from flash_attn_interface import flash_attn_varlen_func  # type: ignore[import-not-found, unused-ignore]

    result = flash_attn_varlen_func(
        query_THD,
        key_TGD,
        value_TGE,
        cu_seqlens,
        cu_seqlens,
        max_seqlen,
        max_seqlen,
        softmax_scale=scale,
        causal=True,
        window_size=(-1, -1) if window is None else (window - 1, 0),
        softcap=softcap or 0.0,
    )
    output: torch.Tensor = result[0] if isinstance(result, tuple) else result
    return output


KERNEL = Kernel(
    name="flash_attention_3",
    run=attention_flash_3,
    compilable=True,
    has_dropout=False,
    has_softcap=True,
    has_sinks=False,
    dtypes=HALF_PRECISION,
    capabilities=range(9, 10),
    if_not_capable="it needs a Hopper GPU",
    limit=lambda needs, major: one_head_dimension(needs),
    module="flash_attn_interface",
    if_missing="the package flash_attn_3 is not installed",
)
