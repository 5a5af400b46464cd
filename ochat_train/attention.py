"""Attention over packs: conversations never see each other. The only file that touches attention kernels.

`transformers` models take their attention from a registry; ours is registered under one name and reads `cu_seqlens`
from the keyword arguments that the model hands down. Shape letters: B batch (1), H heads, G key/value heads, T tokens
of a pack, D head dimension.
"""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F

from data_pipeline.errors import UserError

REGISTERED_NAME = "ochat_packed"
AttentionKernel = Callable[..., torch.Tensor]


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
    """The reference: torch's scaled dot product, one conversation at a time, on any device and in any precision.

    window: a token sees itself and the `window - 1` tokens before it; None sees all before it.
    """
    outputs = []
    lengths = [end - start for start, end in pairwise(cu_seqlens.tolist())]
    # `split` and not slices: its backward pass is one concatenation instead of a zero-filled pack per conversation
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


def attention_varlen(
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
    """torch's own variable-length kernel (FlashAttention-2), CUDA, half precision."""
    varlen_attn, style = _torch_varlen()
    arguments: dict[str, Any] = {"scale": scale}
    if style == "is_causal":  # torch 2.10
        if window is not None and max_seqlen > window:
            raise UserError(
                "model.attention: this torch's varlen kernel has no sliding window; use torch 2.11 or flash-attn"
            )
        arguments["is_causal"] = True
    else:
        arguments["window_size"] = (-1 if window is None else window - 1, 0)
        if style == "enable_gqa":
            arguments["enable_gqa"] = True
    result: torch.Tensor = varlen_attn(
        query_THD, key_TGD, value_TGD, cu_seqlens, cu_seqlens, max_seqlen, max_seqlen, **arguments
    )
    return result


@cache
def _torch_varlen() -> tuple[Callable[..., Any], str]:
    """torch's function and which of its three signatures it has."""
    from torch.nn.attention.varlen import varlen_attn

    names = inspect.signature(varlen_attn).parameters
    style = "enable_gqa" if "enable_gqa" in names else "window_size" if "window_size" in names else "is_causal"
    return varlen_attn, style


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
    """The `flash-attn` package (FlashAttention-2)."""
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


def attention_flash_3(
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
    """The `flash_attn_3` package (FlashAttention-3, Hopper)."""
    from flash_attn_interface import flash_attn_varlen_func  # type: ignore[import-not-found, unused-ignore]

    result = flash_attn_varlen_func(
        query_THD,
        key_TGD,
        value_TGD,
        cu_seqlens,
        cu_seqlens,
        max_seqlen,
        max_seqlen,
        softmax_scale=scale,
        causal=True,
        window_size=(-1, -1) if window is None else (window - 1, 0),
    )
    output: torch.Tensor = result[0] if isinstance(result, tuple) else result
    return output


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
    """The `flash-attn-4` package (CuTe kernels for Hopper and later)."""
    reach = None if window is None else window - 1
    output: torch.Tensor = _flash_4(query_THD, key_TGD, value_TGD, cu_seqlens, max_seqlen, scale, reach)[0]
    return output


# flash-attn-4 builds its kernels in Python, which torch.compile cannot trace; as operators of torch they are single
# nodes.


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
    """Output [T, H, D] and the float32 log-sum-exp [H, T]. reach: how many earlier tokens a token sees, None for
    all.
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


def attention_flex(
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
    """torch's FlexAttention: Triton code compiled for this mask, CUDA, any precision."""
    flex_attention, _ = _compiled_flex()
    query, key, value = (x.transpose(0, 1)[None] for x in (query_THD, key_TGD, value_TGD))
    mask = _flex_mask(cu_seqlens, len(query_THD), window)
    output: torch.Tensor = flex_attention(query, key, value, block_mask=mask, scale=scale, enable_gqa=True)
    return output[0].transpose(0, 1)


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


KERNELS: dict[str, AttentionKernel] = {
    "flash_attention_4": attention_flash_4,
    "flash_attention_3": attention_flash_3,
    "flash_attention_2": attention_flash_2,
    "varlen": attention_varlen,
    "flex": attention_flex,
    "sdpa": attention_sdpa,
}


# Kernels inside which torch.compile sees no Python: `flex` compiles itself, `sdpa` asks for lengths.
COMPILABLE = frozenset(("flash_attention_4", "flash_attention_3", "flash_attention_2", "varlen"))


def choose_attention(wanted: str, *, device: torch.device, dtype: torch.dtype, dropout: float) -> str:
    """The kernel to use: `wanted`, or for `auto` the fastest one that is installed and fits.

    dropout: the model's attention dropout; only kernels that have dropout fit a model that uses it.
    Raises UserError where `wanted` cannot run, with what is missing.
    """
    obstacles = attention_obstacles(device=device, dtype=dtype, dropout=dropout)
    if wanted == "auto":
        return next(name for name, obstacle in obstacles.items() if obstacle is None)
    if obstacles[wanted] is not None:
        usable = ", ".join(name for name, obstacle in obstacles.items() if obstacle is None)
        raise UserError(f"model.attention: `{wanted}` cannot be used: {obstacles[wanted]}; usable here: {usable}")
    return wanted


def attention_obstacles(*, device: torch.device, dtype: torch.dtype, dropout: float) -> dict[str, str | None]:
    """Every kernel, the fastest first, with what keeps it from being used here, or None."""
    return {name: _obstacle(name, device, dtype, dropout) for name in KERNELS}


def missing_packages() -> dict[str, str | None]:
    """Every kernel, the fastest first, with the package that it lacks on this machine, or None; whatever GPU is
    there.
    """
    return {name: _missing_package(name) for name in KERNELS}


def _obstacle(name: str, device: torch.device, dtype: torch.dtype, dropout: float) -> str | None:
    """Why a kernel cannot be used here, None where it can."""
    if name == "sdpa":
        return None
    if device.type != "cuda":
        return "it needs a CUDA GPU"
    if dtype not in (torch.bfloat16, torch.float16) and name != "flex":
        return "it needs bfloat16"
    if dropout and name in ("varlen", "flash_attention_4", "flash_attention_3", "flex"):
        return f"it has no dropout, and the model's attention_dropout is {dropout}"
    if name == "flash_attention_4" and torch.cuda.get_device_capability(device)[0] < 9:
        return "it needs a Hopper GPU or later"
    if name == "flash_attention_3" and torch.cuda.get_device_capability(device)[0] != 9:
        return "it needs a Hopper GPU"
    return _missing_package(name)


def _missing_package(name: str) -> str | None:
    if name == "sdpa":
        return None
    if name == "flex":
        return None if _is_installed("triton") else "the package triton is not installed"
    if name == "flash_attention_4":
        return None if _is_installed("flash_attn.cute") else "the package flash-attn-4 is not installed (extra `gpu`)"
    if name == "flash_attention_3":
        return None if _is_installed("flash_attn_interface") else "the package flash_attn_3 is not installed"
    if name == "flash_attention_2":
        installed = _is_installed("flash_attn.flash_attn_interface")
        return None if installed else "the package flash-attn is not installed (extra `flash-attn`)"
    return None if _is_installed("torch.nn.attention.varlen") else "this torch has no varlen kernel; use 2.10 or later"


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def register_attention(kernel_name: str) -> str:
    """Register the kernel with `transformers` and return the name to give as `attn_implementation`."""
    from transformers import AttentionInterface, AttentionMaskInterface

    kernel = KERNELS[kernel_name]
    if kernel_name == "varlen":
        _torch_varlen()  # looks at a signature, which compiled code cannot

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
            raise UserError("model: attention with logit soft-capping is not supported")
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
