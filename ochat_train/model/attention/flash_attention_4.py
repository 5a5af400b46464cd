"""FlashAttention-4 (Hopper and later), the package `flash-attn-4`.

The package builds its kernels in Python, which torch.compile cannot trace. So forward and backward are operators of
torch here, each a single node of the compiled graph.
"""

from __future__ import annotations

from typing import Any

import torch

from ochat_train.model.attention.kernel import HALF_PRECISION, Kernel


def attention_flash_4(
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
    reach = None if window is None else window - 1
    output: torch.Tensor = _flash_4(query_THD, key_TGD, value_TGD, cu_seqlens, max_seqlen, scale, reach)[0]
    return output


@torch.library.custom_op("ochat::flash_4", mutates_args=())
def _flash_4(
    query_THD: torch.Tensor,
    key_TGD: torch.Tensor,
    value_TGD: torch.Tensor,
    cu_seqlens: torch.Tensor,
    max_seqlen: int,
    scale: float,
    reach: int | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Output [T, H, D] and the log-sum-exp of the scores, float32[H, T].

    reach: number of earlier tokens that a token sees, None for all.
    """
    from flash_attn.cute import flash_attn_varlen_func  # type: ignore[import-not-found, unused-ignore]

    output_THD, lse_HT = flash_attn_varlen_func(
        query_THD,
        key_TGD,
        value_TGD,
        cu_seqlens_q=cu_seqlens,
        cu_seqlens_k=cu_seqlens,
        max_seqlen_q=max_seqlen,
        max_seqlen_k=max_seqlen,
        softmax_scale=scale,
        causal=True,
        window_size=(reach, None if reach is None else 0),
        return_lse=True,
    )[:2]
    return output_THD, lse_HT


@_flash_4.register_fake
def _flash_4_shapes(
    query_THD: torch.Tensor,
    key_TGD: torch.Tensor,
    value_TGD: torch.Tensor,
    cu_seqlens: torch.Tensor,
    max_seqlen: int,
    scale: float,
    reach: int | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    num_tokens, num_heads, _ = query_THD.shape
    output_THD = query_THD.new_empty(query_THD.shape)
    return output_THD, query_THD.new_empty((num_heads, num_tokens), dtype=torch.float32)


@torch.library.custom_op("ochat::flash_4_backward", mutates_args=())
def _flash_4_backward(
    upstream_THD: torch.Tensor,
    query_THD: torch.Tensor,
    key_TGD: torch.Tensor,
    value_TGD: torch.Tensor,
    output_THD: torch.Tensor,
    lse_HT: torch.Tensor,
    cu_seqlens: torch.Tensor,
    max_seqlen: int,
    scale: float,
    reach: int | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    from flash_attn.cute.interface import _flash_attn_bwd  # type: ignore[import-not-found, unused-ignore]

    query_gradient, key_gradient, value_gradient = _flash_attn_bwd(
        query_THD,
        key_TGD,
        value_TGD,
        output_THD,
        upstream_THD.contiguous(),
        lse_HT,
        scale,
        True,
        window_size_left=reach,
        window_size_right=None if reach is None else 0,
        cu_seqlens_q=cu_seqlens,
        cu_seqlens_k=cu_seqlens,
        max_seqlen_q=max_seqlen,
        max_seqlen_k=max_seqlen,
    )[:3]
    return query_gradient, key_gradient, value_gradient


@_flash_4_backward.register_fake
def _flash_4_backward_shapes(
    upstream_THD: torch.Tensor, query_THD: torch.Tensor, key_TGD: torch.Tensor, value_TGD: torch.Tensor, *rest: Any
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    query_gradient, key_gradient, value_gradient = (x.new_empty(x.shape) for x in (query_THD, key_TGD, value_TGD))
    return query_gradient, key_gradient, value_gradient


def _flash_4_save(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
    query_THD, key_TGD, value_TGD, cu_seqlens, *ctx.settings = inputs
    ctx.save_for_backward(query_THD, key_TGD, value_TGD, *output, cu_seqlens)


def _flash_4_gradients(ctx: Any, upstream_THD: torch.Tensor, upstream_of_lse: torch.Tensor | None) -> tuple[Any, ...]:
    gradients = _flash_4_backward(upstream_THD, *ctx.saved_tensors, *ctx.settings)
    return *gradients, None, None, None, None


_flash_4.register_autograd(_flash_4_gradients, setup_context=_flash_4_save)


KERNEL = Kernel(
    name="flash_attention_4",
    run=attention_flash_4,
    compilable=True,
    has_dropout=False,
    dtypes=HALF_PRECISION,
    capabilities=range(9, 1000),
    if_not_capable="it needs a Hopper GPU or later",
    module="flash_attn.cute",
    if_missing="the package flash-attn-4 is not installed (extra `gpu`)",
    saved_operators=("ochat.flash_4.default",),
)
