"""Which linear modules of a base get an adapter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from data_pipeline.errors import UserError
from data_pipeline.text_rules import did_you_mean
from ochat_train.model.structure import decoder_layers
from ochat_train.recipe.sections.adapter import AdapterSettings

ALL_LINEAR = "all-linear"
_PLACE = "adapter.targets"


def target_modules(causal_lm: Any, settings: AdapterSettings) -> Sequence[str]:
    """Full names of the modules that get an adapter, in the order of the model.

    Only linear modules of the decoder layers: neither the head, nor the encoders of a base that also reads images.
    Raises UserError for a name that matches none of them, for a rank that a module is too small for, and where
    `all-linear` would leave out experts, whose weights are stacked and not linear modules.
    """
    linear = linear_modules(causal_lm)
    if settings.targets == ALL_LINEAR:
        _refuse_stacked_weights(causal_lm)
        chosen = list(linear)
    else:
        chosen = _named(linear, settings.targets)
    for name in chosen:
        smallest = min(linear[name].in_features, linear[name].out_features)
        if settings.rank > smallest:
            raise UserError(
                "adapter.rank",
                f"{settings.rank} is more than {name} has on its smaller side ({smallest}): an adapter of that rank is "
                "larger than what it adapts",
                "use a smaller rank, or name targets without this module",
            )
    return chosen


def linear_modules(causal_lm: Any) -> dict[str, torch.nn.Linear]:
    """The linear modules of the decoder layers, by their full names."""
    wanted = {id(module) for layer in decoder_layers(causal_lm) for module in layer.modules()}
    found = {
        name: module
        for name, module in causal_lm.named_modules()
        if id(module) in wanted and isinstance(module, torch.nn.Linear)
    }
    if not found:
        problem = f"`{causal_lm.config.model_type}` has no linear modules in its decoder layers"
        raise UserError("adapter", problem, "leave `adapter` out, which trains all weights")
    return found


def _named(linear: dict[str, torch.nn.Linear], targets: Sequence[str]) -> list[str]:
    """The modules whose name is one of `targets` or ends with it, after a dot."""
    known = sorted({name.rpartition(".")[2] for name in linear})
    for target in targets:
        if not any(_fits(name, target) for name in linear):
            raise UserError(
                _PLACE,
                f"no linear module of the decoder layers is called `{target}`",
                did_you_mean(target, known) or f"names: {', '.join(known)}",
            )
    return [name for name in linear if any(_fits(name, target) for target in targets)]


def _fits(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def _refuse_stacked_weights(causal_lm: Any) -> None:
    """Raise UserError for weights of decoder layers that are matrices of several experts in one tensor."""
    for layer in decoder_layers(causal_lm):
        for name, parameter in layer.named_parameters():
            if parameter.ndim == 3 and "conv" not in name:
                known = sorted({full.rpartition(".")[2] for full in linear_modules(causal_lm)})
                raise UserError(
                    _PLACE,
                    f"`{ALL_LINEAR}` would leave out the experts: `{name}` holds the weights of all experts in one "
                    "tensor, which is not a linear module",
                    f"name the modules to adapt, for example `targets: [{', '.join(known)}]`; the experts are then "
                    "unchanged",
                )
