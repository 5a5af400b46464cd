"""Makes `transformers` call our kernels.

Models of `transformers` look up their attention function in a registry. Ours is registered under one name and reads
`cu_seqlens` and `max_seqlen` from the keyword arguments that a model passes down from its `forward`.
"""

from __future__ import annotations

from typing import Any

import torch

from ochat_train.model.attention.kernels import KERNELS
from ochat_train.model.attention.keywords import refuse_unused

REGISTERED_NAME = "ochat_packed"


def register_attention(kernel_name: str) -> str:
    """Register the kernel with `transformers` and return the name to give as `attn_implementation`.

    The registered function raises UserError for every keyword that no kernel uses. In compiled layers that error is
    not readable, so call `keywords.check_attention` first.
    """
    from transformers import AttentionInterface, AttentionMaskInterface

    kernel = KERNELS[kernel_name]
    if kernel.prepare is not None:
        kernel.prepare()
    run = kernel.run

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
        refuse_unused(module, unused)
        query, key, value = (x[0].transpose(0, 1) for x in (query_BHTD, key_BGTD, value_BGTD))  # B is 1
        output_THD = run(
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
