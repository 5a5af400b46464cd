"""How each decoder layer runs: compiled or not, and what it keeps for the backward pass.

All layers of a model share one compiled function: they have the same code and the same shapes, so it is compiled once.
Layers are given a new `forward`, not wrapped: names of parameters stay, and DeepSpeed's hooks run outside compiled
code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import torch
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

LayerForward = Callable[..., torch.Tensor]


def set_layer_forward(layers: Sequence[torch.nn.Module], *, checkpointing: Sequence[str], compiled: bool) -> None:
    """Give every layer its way to run.

    checkpointing: for each layer `none` (keep what autograd keeps), `matmuls` (keep the results of matrix products and
    of attention, recompute what is cheap) or `full` (keep the layer's input, recompute the layer). Without gradients
    there is nothing to keep, and all layers run as `none`.
    """
    for layer, kind in zip(layers, checkpointing, strict=True):
        training, evaluation = (layer_forward(name, compiled=compiled) for name in (kind, "none"))
        layer.forward = partial(_forward, training, evaluation, layer)


def _forward(training: LayerForward, evaluation: LayerForward, *args: Any, **kwargs: Any) -> torch.Tensor:
    return (training if torch.is_grad_enabled() else evaluation)(*args, **kwargs)


@cache
def layer_forward(checkpointing: str, *, compiled: bool) -> LayerForward:
    """The function that all layers of one kind share; called with the layer and what its `forward` takes."""
    function = {"none": _plain, "matmuls": _keep_matmuls, "full": _keep_input}[checkpointing]
    return torch.compile(function, dynamic=False, fullgraph=True) if compiled else function


def _plain(layer: torch.nn.Module, hidden_1TD: torch.Tensor, **kwargs: Any) -> torch.Tensor:
    result: torch.Tensor = type(layer).forward(layer, hidden_1TD, **kwargs)
    return result


def _keep_matmuls(layer: torch.nn.Module, hidden_1TD: torch.Tensor, **kwargs: Any) -> torch.Tensor:
    def run(hidden_1TD: torch.Tensor) -> torch.Tensor:
        return _plain(layer, hidden_1TD, **kwargs)

    result: torch.Tensor = checkpoint(run, hidden_1TD, use_reentrant=False, context_fn=_matmul_contexts)
    return result


def _keep_input(layer: torch.nn.Module, hidden_1TD: torch.Tensor, **kwargs: Any) -> torch.Tensor:
    def run(hidden_1TD: torch.Tensor) -> torch.Tensor:
        return _plain(layer, hidden_1TD, **kwargs)

    result: torch.Tensor = checkpoint(run, hidden_1TD, use_reentrant=False)
    return result


def _matmul_contexts() -> Any:
    return create_selective_checkpoint_contexts(_policy)


def _policy(context: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if str(operator) in _COSTLY else CheckpointPolicy.PREFER_RECOMPUTE


_COSTLY = frozenset(
    (
        "aten.mm.default",
        "aten.addmm.default",
        "aten.bmm.default",
        "aten._scaled_mm.default",
        "aten._scaled_dot_product_flash_attention.default",
        "aten._scaled_dot_product_flash_attention_for_cpu.default",
        "aten._scaled_dot_product_efficient_attention.default",
        "aten._scaled_dot_product_cudnn_attention.default",
        "ochat.flash_4.default",
        "torch_attn._varlen_attn.default",
        "flash_attn._flash_attn_varlen_forward.default",
        "flex_attention",
    )
)
