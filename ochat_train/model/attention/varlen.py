"""torch's own kernel for sequences of different lengths (FlashAttention-2)."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from data_pipeline.errors import UserError
from ochat_train.model.attention.kernel import HALF_PRECISION, Kernel, one_head_dimension


def attention_varlen(
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
    varlen_attn, style = torch_varlen()
    arguments: dict[str, Any] = {"scale": scale}
    if style == "is_causal":
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
        query_THD, key_TGD, value_TGE, cu_seqlens, cu_seqlens, max_seqlen, max_seqlen, **arguments
    )
    return result


@cache
def torch_varlen() -> tuple[Callable[..., Any], str]:
    """torch's function, and which of its signatures it has: `is_causal` (2.10), `window_size` or `enable_gqa`."""
    from torch.nn.attention.varlen import varlen_attn

    names = inspect.signature(varlen_attn).parameters
    style = "enable_gqa" if "enable_gqa" in names else "window_size" if "window_size" in names else "is_causal"
    return varlen_attn, style


KERNEL = Kernel(
    name="varlen",
    run=attention_varlen,
    compilable=True,
    has_dropout=False,
    has_softcap=False,
    has_sinks=False,
    dtypes=HALF_PRECISION,
    limit=lambda needs, major: one_head_dimension(needs),
    module="torch.nn.attention.varlen",
    if_missing="this torch has no varlen kernel; use 2.10 or later",
    saved_operators=("torch_attn._varlen_attn.default",),
    prepare=torch_varlen,  # looks at a signature, which compiled code cannot
)
