"""Decoder layers' matrix products in float8 (torchao, one scale per tensor); opt-in, for Ada and Hopper GPUs and later.

Each product scales and casts its operands. Weights, optimizer and exports do not change, and the language-model head,
embeddings and norms stay in bfloat16.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

import torch

from data_pipeline.errors import UserError

_MULTIPLE = 16  # of both dimensions of a weight, and of the tokens of a pack: the GPU's float8 instructions need it


def use_float8(layers: Sequence[torch.nn.Module], *, device: torch.device, pack_length: int, compiled: bool) -> None:
    """Replace the linear modules of decoder layers by torchao's float8 ones, in place. Their parameters are the same.

    Raises UserError where GPU, packages or shapes do not fit.
    """
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)
    if problems := float8_obstacles(layers, capability=capability, pack_length=pack_length, compiled=compiled):
        raise float8_error(problems[0])
    from torchao.float8 import (  # type: ignore[import-not-found, import-untyped, unused-ignore]
        Float8LinearConfig,
        convert_to_float8_training,
    )

    config = Float8LinearConfig.from_recipe_name("tensorwise")
    for layer in layers:
        convert_to_float8_training(layer, config=config)


def float8_error(obstacle: str) -> UserError:
    """What is said of one of `float8_obstacles`, before a run and at its start."""
    return UserError("model.float8", f"true cannot be used: {obstacle}", "fix that, or remove model.float8")


def float8_obstacles(
    layers: Sequence[torch.nn.Module], *, capability: tuple[int, int], pack_length: int, compiled: bool
) -> list[str]:
    """Why these layers cannot use float8; empty where they can. capability: of the GPU, (0, 0) for none."""
    linears = [module for layer in layers for module in layer.modules() if isinstance(module, torch.nn.Linear)]
    odd = next((m for m in linears if m.in_features % _MULTIPLE or m.out_features % _MULTIPLE), None)
    rules = (
        (capability >= (8, 9), "it needs an Ada, Hopper or later GPU"),
        (importlib.util.find_spec("torchao") is not None, "the package torchao is not installed (extra `gpu`)"),
        (compiled, "it needs model.compile: uncompiled, casting costs more than float8 saves"),
        (
            odd is None,
            f"weights must be multiples of {_MULTIPLE}; one of the model's is {odd and tuple(odd.weight.shape)}",
        ),
        (
            pack_length % _MULTIPLE == 0,
            f"train.pack_length_tokens must be a multiple of {_MULTIPLE}; it is {pack_length}",
        ),
    )
    return [rule for is_met, rule in rules if not is_met]
