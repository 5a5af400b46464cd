"""torch's scaled dot product, one conversation at a time: the reference, on any device and in any precision."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F

from ochat_train.model.attention.kernel import Kernel


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
    """softmax(scale * q @ k.T) @ v for each conversation by itself. Arguments as in `kernel.AttentionFunction`."""
    outputs = []
    lengths = [end - start for start, end in pairwise(cu_seqlens.tolist())]
    # `split`, not slices: its backward pass is one concatenation instead of a pack of zeros for each conversation
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


KERNEL = Kernel(
    name="sdpa",
    run=attention_sdpa,
    compilable=False,  # reads the lengths of conversations
    has_dropout=True,
    needs_gpu=False,
    saved_operators=(
        "aten._scaled_dot_product_flash_attention.default",
        "aten._scaled_dot_product_flash_attention_for_cpu.default",
        "aten._scaled_dot_product_efficient_attention.default",
        "aten._scaled_dot_product_cudnn_attention.default",
    ),
)
