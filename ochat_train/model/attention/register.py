"""Makes `transformers` call our kernels.

Models of `transformers` look up their attention function in a registry. Ours is registered under one name and reads
`cu_seqlens` and `max_seqlen` from the keyword arguments that a model passes down from its `forward`.
"""

from __future__ import annotations

from typing import Any

import torch

from data_pipeline.errors import UserError
from ochat_train.model.attention.kernel import AttentionFunction
from ochat_train.model.attention.kernels import KERNELS
from ochat_train.model.attention.keywords import refuse_unused, without_borders

REGISTERED_NAME = "ochat_packed"


def register_attention(kernel_name: str, *, run: AttentionFunction | None = None) -> str:
    """Register the kernel with `transformers` and return the name to give as `attn_implementation`.

    The registered function raises UserError for every keyword that no kernel uses, for one that this kernel does not
    use, and for missing borders. In compiled layers that error is not readable, so call `needs.attention_needs` and
    `choose.choose_attention` first.
    """
    from transformers import AttentionInterface, AttentionMaskInterface

    kernel = KERNELS[kernel_name]
    if kernel.prepare is not None:
        kernel.prepare()
    function = kernel.run if run is None else run

    def packed_attention(
        module: torch.nn.Module,
        query_BHTD: torch.Tensor,
        key_BGTD: torch.Tensor,
        value_BGTE: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        *,
        cu_seqlens: torch.Tensor | None = None,
        max_seqlen: int | None = None,
        scaling: float | None = None,
        dropout: float = 0.0,
        sliding_window: int | None = None,
        softcap: float | None = None,
        s_aux: torch.Tensor | None = None,
        **unused: Any,
    ) -> tuple[torch.Tensor, None]:
        if cu_seqlens is None or max_seqlen is None:
            raise without_borders(module)
        refuse_unused(module, {"attention_mask": attention_mask, **unused})
        lacks = _lacks(softcap, s_aux)
        if lacks is not None:
            raise UserError("model.attention", f"`{kernel_name}` cannot be used: it has no {lacks}", "use `auto`")
        query, key, value = (x[0].transpose(0, 1) for x in (query_BHTD, key_BGTD, value_BGTE))  # B is 1
        output_THE = function(
            query,
            key,
            value,
            cu_seqlens=cu_seqlens,
            max_seqlen=max_seqlen,
            scale=query.shape[2] ** -0.5 if scaling is None else scaling,
            window=sliding_window,
            dropout=dropout,
            softcap=softcap,
            sinks_H=s_aux,
        )
        return output_THE[None], None

    def _lacks(softcap: float | None, sinks_H: torch.Tensor | None) -> str | None:
        if softcap is not None and not kernel.has_softcap:
            return "soft-capping of attention scores"
        return "attention sinks" if sinks_H is not None and not kernel.has_sinks else None

    AttentionInterface.register(REGISTERED_NAME, packed_attention)
    # No mask is built: the kernel knows the borders from cu_seqlens, and is causal.
    AttentionMaskInterface.register(REGISTERED_NAME, lambda *args, **kwargs: None)
    return REGISTERED_NAME
