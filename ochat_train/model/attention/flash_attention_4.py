"""FlashAttention-4 (Hopper and later), the package `flash-attn-4`.

The package builds its kernels in Python, which torch.compile cannot trace. So forward and backward are operators of
torch here, each a single node of the compiled graph.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import tempfile
from typing import Any

import torch

from data_pipeline.file_hashes import cache_folder
from ochat_train.model.attention.kernel import HALF_PRECISION, Kernel
from ochat_train.model.attention.needs import AttentionNeeds

_KEPT = "FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED"


def attention_flash_4(
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
    reach = None if window is None else window - 1
    tensors = (query_THD, key_TGD, value_TGE, sinks_H, cu_seqlens)
    output: torch.Tensor = _flash_4(*tensors, max_seqlen, scale, reach, softcap or 0.0)[0]
    return output


@functools.cache
def keep_compiled_kernels(device: torch.device) -> None:
    """Have the package keep its kernels for this GPU in the cache folder, for later runs. Call it before its import.

    A user's own setting stays. Without a folder that can be written and locked, nothing is kept, which is the package's
    default: it locks each kernel, and where the file system knows no locks it would wait and then end the run.
    """
    folder = cache_folder()
    if folder is None or _KEPT in os.environ or device.type != "cuda":
        return
    major, minor = torch.cuda.get_device_capability(device)
    kernels = folder / "flash_attention_4" / f"sm_{major}{minor}"
    with contextlib.suppress(OSError):
        kernels.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=kernels) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.environ.setdefault("FLASH_ATTENTION_CUTE_DSL_CACHE_DIR", str(kernels))
            os.environ[_KEPT] = "1"


@torch.library.custom_op("ochat::flash_4", mutates_args=())
def _flash_4(
    query_THD: torch.Tensor,
    key_TGD: torch.Tensor,
    value_TGE: torch.Tensor,
    sinks_H: torch.Tensor | None,
    cu_seqlens: torch.Tensor,
    max_seqlen: int,
    scale: float,
    reach: int | None,
    softcap: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Output [T, H, E] and the log-sum-exp of the scores, float32[H, T], that of a sink included.

    reach: number of earlier tokens that a token sees, None for all. softcap: 0 for none.
    """
    keep_compiled_kernels(query_THD.device)
    from flash_attn.cute import flash_attn_varlen_func  # type: ignore[import-not-found, unused-ignore]

    output_THE, lse_HT = flash_attn_varlen_func(
        query_THD,
        key_TGD,
        value_TGE,
        cu_seqlens_q=cu_seqlens,
        cu_seqlens_k=cu_seqlens,
        max_seqlen_q=max_seqlen,
        max_seqlen_k=max_seqlen,
        softmax_scale=scale,
        causal=True,
        window_size=(reach, None if reach is None else 0),
        learnable_sink=sinks_H,
        softcap=softcap,
        return_lse=True,
    )[:2]
    return output_THE, lse_HT


@_flash_4.register_fake
def _flash_4_shapes(
    query_THD: torch.Tensor,
    key_TGD: torch.Tensor,
    value_TGE: torch.Tensor,
    sinks_H: torch.Tensor | None,
    cu_seqlens: torch.Tensor,
    max_seqlen: int,
    scale: float,
    reach: int | None,
    softcap: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    num_tokens, num_heads, _ = query_THD.shape
    output_THE = query_THD.new_empty((num_tokens, num_heads, value_TGE.shape[2]))
    return output_THE, query_THD.new_empty((num_heads, num_tokens), dtype=torch.float32)


@torch.library.custom_op("ochat::flash_4_backward", mutates_args=())
def _flash_4_backward(
    upstream_THE: torch.Tensor,
    query_THD: torch.Tensor,
    key_TGD: torch.Tensor,
    value_TGE: torch.Tensor,
    output_THE: torch.Tensor,
    lse_HT: torch.Tensor,
    sinks_H: torch.Tensor | None,
    cu_seqlens: torch.Tensor,
    max_seqlen: int,
    scale: float,
    reach: int | None,
    softcap: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of query, key, value and sinks; the last is empty without sinks, as an operator returns no None."""
    from flash_attn.cute.interface import _flash_attn_bwd  # type: ignore[import-not-found, unused-ignore]

    gradients = _flash_attn_bwd(
        query_THD,
        key_TGD,
        value_TGE,
        output_THE,
        upstream_THE.contiguous(),
        lse_HT,
        scale,
        True,
        softcap,
        window_size_left=reach,
        window_size_right=None if reach is None else 0,
        cu_seqlens_q=cu_seqlens,
        cu_seqlens_k=cu_seqlens,
        max_seqlen_q=max_seqlen,
        max_seqlen_k=max_seqlen,
        learnable_sink=sinks_H,
    )
    query_gradient, key_gradient, value_gradient = gradients[:3]
    return query_gradient, key_gradient, value_gradient, query_THD.new_empty(0) if sinks_H is None else gradients[3]


@_flash_4_backward.register_fake
def _flash_4_backward_shapes(
    upstream_THE: torch.Tensor,
    query_THD: torch.Tensor,
    key_TGD: torch.Tensor,
    value_TGE: torch.Tensor,
    output_THE: torch.Tensor,
    lse_HT: torch.Tensor,
    sinks_H: torch.Tensor | None,
    *rest: Any,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    query_gradient, key_gradient, value_gradient = (x.new_empty(x.shape) for x in (query_THD, key_TGD, value_TGE))
    sinks_gradient = query_THD.new_empty(0) if sinks_H is None else sinks_H.new_empty(sinks_H.shape)
    return query_gradient, key_gradient, value_gradient, sinks_gradient


def _flash_4_save(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
    query_THD, key_TGD, value_TGE, sinks_H, cu_seqlens, *ctx.settings = inputs
    ctx.save_for_backward(query_THD, key_TGD, value_TGE, *output, sinks_H, cu_seqlens)


def _flash_4_gradients(ctx: Any, upstream_THE: torch.Tensor, upstream_of_lse: torch.Tensor | None) -> tuple[Any, ...]:
    *gradients, sinks_gradient = _flash_4_backward(upstream_THE, *ctx.saved_tensors, *ctx.settings)
    without_sinks = ctx.saved_tensors[5] is None
    return *gradients, None if without_sinks else sinks_gradient, None, None, None, None, None


_flash_4.register_autograd(_flash_4_gradients, setup_context=_flash_4_save)


def _limit(needs: AttentionNeeds, major: int) -> str | None:
    """What `_validate_head_dims` and the backward pass of the package demand on a GPU of this compute capability."""
    if major >= 12 and (needs.softcap or needs.sinks):
        return "on this GPU its backward pass has no soft-capped attention scores and no attention sinks"
    for query, value in sorted(needs.head_dims):
        fits = query % 8 == value % 8 == 0 and max(query, value) <= (256 if major == 9 else 128)
        if not (fits or (major in (10, 11) and (query, value) in ((192, 128), (256, 256)))):
            return f"on this GPU it has no heads of {query} for query and key with {value} for value, as the model has"
        if needs.is_grouped and query != value:
            return f"query heads that share a key head must have one dimension there; these have {query} and {value}"
        if needs.sinks and major in (10, 11) and query == 256:
            return "on this GPU its heads of 256 have no attention sinks"
    return None


KERNEL = Kernel(
    name="flash_attention_4",
    run=attention_flash_4,
    compilable=True,
    has_dropout=False,
    has_softcap=True,
    has_sinks=True,
    dtypes=HALF_PRECISION,
    capabilities=range(9, 1000),
    if_not_capable="it needs a Hopper GPU or later",
    limit=_limit,
    module="flash_attn.cute",
    if_missing="the package flash-attn-4 is not installed (extra `gpu`)",
    saved_operators=("ochat.flash_4.default",),
    first_call="flash_attention_4 compiles kernels that no earlier run has kept, for up to 30 s",
)
