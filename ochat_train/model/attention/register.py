"""Makes `transformers` call a kernel of ours."""

from __future__ import annotations

from typing import Any

import torch

from data_pipeline.errors import UserError
from ochat_train.model.attention.choose import KERNELS
from ochat_train.model.attention.torch_kernels import torch_varlen

REGISTERED_NAME = "ochat_packed"


def register_attention(kernel_name: str) -> str:
    """Register the kernel with `transformers` and return the name to give as `attn_implementation`."""
    from transformers import AttentionInterface, AttentionMaskInterface

    kernel = KERNELS[kernel_name]
    if kernel_name == "varlen":
        torch_varlen()  # looks at a signature, which compiled code cannot

    def packed_attention(
        module: torch.nn.Module,
        query_BHTD: torch.Tensor,
        key_BGTD: torch.Tensor,
        value_BGTD: torch.Tensor,
        attention_mask: torch.Tensor | None,
        *,
        scaling: float,
        dropout: float = 0.0,
        sliding_window: int | None = None,
        cu_seqlens: torch.Tensor,
        max_seqlen: int,
        **unused: Any,
    ) -> tuple[torch.Tensor, None]:
        if unused.get("softcap") is not None:
            raise UserError("model", "attention with logit soft-capping is not supported")
        query, key, value = (x[0].transpose(0, 1) for x in (query_BHTD, key_BGTD, value_BGTD))
        output_THD = kernel(
            query,
            key,
            value,
            cu_seqlens=cu_seqlens,
            max_seqlen=max_seqlen,
            scale=scaling,
            window=sliding_window,
            dropout=dropout,
        )
        return output_THD[None], None

    AttentionInterface.register(REGISTERED_NAME, packed_attention)
    # No mask is built: the kernel knows the borders from cu_seqlens, and is causal.
    AttentionMaskInterface.register(REGISTERED_NAME, lambda *args, **kwargs: None)
    return REGISTERED_NAME
