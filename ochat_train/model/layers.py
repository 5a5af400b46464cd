"""How each decoder layer runs: compiled or not, and what it keeps for the backward pass.

All layers of a model share one compiled function: they have the same code and the same shapes, so it is compiled once.
Layers get a new `forward` and are not wrapped, so that parameters keep their names, and DeepSpeed's hooks run outside
compiled code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import torch
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from ochat_train.model.attention.kernels import KERNELS

LayerForward = Callable[..., Any]  # hidden states or, in some families, a tuple that begins with them


def set_layer_forward(
    layers: Sequence[torch.nn.Module], *, checkpointing: Sequence[str], compiled: bool, rank: int | None = None
) -> None:
    """Give every layer the function that it runs.

    checkpointing: what each layer keeps for the backward pass. `none`: all that autograd keeps. `matmuls`: results of
    matrix products and attention; the rest, which is cheap, is recomputed. `full`: only its input; the whole layer is
    recomputed. Without gradients there is nothing to keep, and all layers run as `none`.
    rank: of an adapter, whose products with B are as cheap to compute as to keep, and are recomputed; None without one.
    """
    for layer, kind in zip(layers, checkpointing, strict=True):
        training, evaluation = (layer_forward(name, compiled=compiled, rank=rank) for name in (kind, "none"))
        layer.forward = partial(_forward, training, evaluation, layer)


def _forward(training: LayerForward, evaluation: LayerForward, *args: Any, **kwargs: Any) -> Any:
    return (training if torch.is_grad_enabled() else evaluation)(*args, **kwargs)


@cache
def layer_forward(checkpointing: str, *, compiled: bool, rank: int | None) -> LayerForward:
    """The function that all layers of one kind share. It takes the layer and the arguments of its `forward`."""
    function = {"none": _plain, "matmuls": _keep_matmuls(rank), "full": _keep_input}[checkpointing]
    return torch.compile(function, dynamic=False, fullgraph=True) if compiled else function


def _plain(layer: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
    return type(layer).forward(layer, *args, **kwargs)


def _keep_matmuls(rank: int | None) -> LayerForward:
    def policy(context: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        return _policy(rank, operator, *args)

    def contexts() -> Any:
        return create_selective_checkpoint_contexts(policy)

    def keep(layer: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        def run(*args: Any) -> Any:
            return _plain(layer, *args, **kwargs)

        return checkpoint(run, *args, use_reentrant=False, context_fn=contexts)

    return keep


def _keep_input(layer: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
    def run(*args: Any) -> Any:
        return _plain(layer, *args, **kwargs)

    return checkpoint(run, *args, use_reentrant=False)


def _policy(rank: int | None, operator: Any, *args: Any) -> CheckpointPolicy:
    name = str(operator)
    is_cheap = rank is not None and name == _PRODUCT and args[0].shape[-1] == rank  # of what A gave with B
    return CheckpointPolicy.MUST_SAVE if name in _SAVED and not is_cheap else CheckpointPolicy.PREFER_RECOMPUTE


_PRODUCT = "aten.mm.default"
_MATRIX_PRODUCTS = (
    _PRODUCT,
    "aten.addmm.default",
    "aten.bmm.default",
    "aten._scaled_mm.default",
    "ochat.nf4_linear.default",  # with a weight in 4 bits (adapter/nf4.py)
)
_SAVED = frozenset((*_MATRIX_PRODUCTS, *(name for kernel in KERNELS.values() for name in kernel.saved_operators)))
