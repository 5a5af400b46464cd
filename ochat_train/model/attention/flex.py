"""torch's FlexAttention: Triton code that is compiled for each mask, on CUDA and in any precision."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from ochat_train.model.attention.kernel import Kernel
from ochat_train.model.attention.needs import AttentionNeeds

ScoreFunction = Callable[..., torch.Tensor]

_SHORT = (
    128  # tokens; for fewer, torch takes a kernel for generation, which grouped heads of 112 tokens did not fit into
)


def attention_flex(
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
    """Arguments as in `kernel.AttentionFunction`.

    With lse_i = log sum_j exp(score_ij), the kernel's output o_i becomes one with sinks by

        o_i * sum_j exp(score_ij) / (exp(sink) + sum_j exp(score_ij)) = o_i * sigmoid(lse_i - sink)

    The kernel's log-sum-exp is differentiable, so autograd does the rest.
    """
    from torch.nn.attention.flex_attention import AuxRequest

    flex_attention, _ = _compiled_flex()
    query, key, value = (x.transpose(0, 1)[None] for x in (query_THD, key_TGD, value_TGE))
    arguments: dict[str, Any] = {
        "block_mask": _flex_mask(cu_seqlens, len(query_THD), window),
        "scale": scale,
        "enable_gqa": True,
    }
    if len(query_THD) < _SHORT:
        arguments["kernel_options"] = {"FORCE_USE_FLEX_ATTENTION": True}
    if softcap is not None:
        arguments["score_mod"] = _soft_capped(softcap)
    if sinks_H is None:
        output_1HTE: torch.Tensor = flex_attention(query, key, value, **arguments)
    else:
        plain_1HTE, extra = flex_attention(query, key, value, **arguments, return_aux=AuxRequest(lse=True))
        lse_1HT = extra.lse.to(torch.promote_types(plain_1HTE.dtype, torch.float32))
        kept_1HT = torch.sigmoid(lse_1HT - sinks_H.to(lse_1HT.dtype)[None, :, None])
        output_1HTE = (plain_1HTE * kept_1HT[..., None]).to(plain_1HTE.dtype)
    return output_1HTE[0].transpose(0, 1)


@cache
def _soft_capped(softcap: float) -> ScoreFunction:
    """One function for each bound: a new function would be compiled again."""

    def capped(score: torch.Tensor, batch: Any, head: Any, query: Any, key: Any) -> torch.Tensor:
        return softcap * torch.tanh(score / softcap)

    return capped


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


def _limit(needs: AttentionNeeds, major: int) -> str | None:
    """FlexAttention's Triton code does not start with fewer than 16 numbers in a head."""
    least = min((min(pair) for pair in needs.head_dims), default=16)
    return None if least >= 16 else f"its head dimension is at least 16, and the model's is {least}"


KERNEL = Kernel(
    name="flex",
    run=attention_flex,
    compilable=False,  # compiles itself
    has_dropout=False,
    has_softcap=True,
    has_sinks=True,
    limit=_limit,
    module="triton",
    if_missing="the package triton is not installed",
    saved_operators=("flex_attention",),
    first_call="torch compiles `flex` for this base, as every run does once",
)
