"""torch's scaled dot product, one conversation at a time: the reference, on any device and in any precision."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F

from ochat_train.model.attention.kernel import Kernel


def attention_sdpa(
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
    """The formula of `kernel.AttentionFunction` for each conversation by itself. Arguments as there."""
    outputs = []
    lengths = [end - start for start, end in pairwise(cu_seqlens.tolist())]
    # `split`, not slices: its backward pass is one concatenation instead of a pack of zeros for each conversation
    conversations = zip(
        *(x.transpose(0, 1).split(lengths, dim=1) for x in (query_THD, key_TGD, value_TGE)), strict=True
    )
    for length, tensors in zip(lengths, conversations, strict=True):
        if not length:
            continue
        query, key, value = (x[None] for x in tensors)
        if softcap is None and sinks_H is None:
            mask = _visible(length, window, query.device) if window is not None and length > window else None
            output = F.scaled_dot_product_attention(
                query,
                key,
                value,
                attn_mask=mask,
                is_causal=mask is None,
                scale=scale,
                dropout_p=dropout,
                enable_gqa=True,
            )
        else:
            visible = _visible(length, window, query.device)
            output = _written_out(
                query, key, value, visible, scale=scale, dropout=dropout, softcap=softcap, sinks_H=sinks_H
            )
        outputs.append(output[0].transpose(0, 1))
    return torch.cat(outputs)


def _visible(length: int, window: int | None, device: torch.device) -> torch.Tensor:
    """bool[length, length]: whether a query token (row) sees a key token (column)."""
    distance = torch.arange(length, device=device)
    distance = distance[:, None] - distance[None, :]
    return (distance >= 0) & (distance < (length if window is None else window))


def _written_out(
    query_1HTD: torch.Tensor,
    key_1GTD: torch.Tensor,
    value_1GTE: torch.Tensor,
    visible_TT: torch.Tensor,
    *,
    scale: float,
    dropout: float,
    softcap: float | None,
    sinks_H: torch.Tensor | None,
) -> torch.Tensor:
    """What torch's function does not compute, with all scores at once: [1, H, T, E].

    Scores and softmax are at least float32. A sink is one more column of scores, whose share of the softmax is thrown
    away.
    """
    _, num_heads, length, _ = query_1HTD.shape
    group = num_heads // key_1GTD.shape[1]
    key_1HTD, value_1HTE = (x.repeat_interleave(group, dim=1) for x in (key_1GTD, value_1GTE))
    wide = torch.promote_types(query_1HTD.dtype, torch.float32)
    scores = query_1HTD.to(wide) @ key_1HTD.to(wide).transpose(2, 3) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~visible_TT, -torch.inf)
    if sinks_H is not None:
        scores = torch.cat((scores, sinks_H.to(wide)[None, :, None, None].expand(1, -1, length, 1)), dim=3)
    shares = scores.softmax(dim=3)[..., :length].to(value_1HTE.dtype)
    return F.dropout(shares, p=dropout) @ value_1HTE


KERNEL = Kernel(
    name="sdpa",
    run=attention_sdpa,
    compilable=False,  # reads the lengths of conversations
    has_dropout=True,
    has_softcap=True,
    has_sinks=True,
    needs_gpu=False,
    saved_operators=(
        "aten._scaled_dot_product_flash_attention.default",
        "aten._scaled_dot_product_flash_attention_for_cpu.default",
        "aten._scaled_dot_product_efficient_attention.default",
        "aten._scaled_dot_product_cudnn_attention.default",
    ),
)
