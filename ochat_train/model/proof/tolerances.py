"""How far results may be apart before a base is refused, and the words for what is further."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from data_pipeline.text_rules import some_names
from ochat_train.model.proof.measure import Differences


@dataclass(frozen=True, kw_only=True)
class Tolerances:
    """The largest that each of `measure.Differences` may be. loss: also of the scores."""

    hidden: float
    gradient: float
    loss: float
    leak: float
    gradient_leak: float


FLOAT32 = Tolerances(hidden=2e-4, gradient=2e-3, loss=2e-4, leak=0.0, gradient_leak=0.0)
"""Rounding gives 1e-6 to 1e-5 with these weights, a fault 1e-2 and more."""

TENSOR_FLOAT32 = Tolerances(hidden=2e-2, gradient=5e-2, loss=5e-3, leak=0.0, gradient_leak=0.0)
"""Products that round their operands to 11 bits."""

_ROUNDING = 2e-5  # of sums in another order


def tolerances(*, has_experts: bool, has_mixer_kernels: bool, device: torch.device) -> Tolerances:
    """What is allowed.

    The products of experts have as many rows as an expert gets tokens, so rounding depends on other conversations. On a
    GPU, gradients are added up in any order, and the kernels of sequence mixers (borders.py) multiply in TF32.
    """
    usual = TENSOR_FLOAT32 if has_mixer_kernels else FLOAT32
    return replace(
        usual,
        leak=_ROUNDING if has_experts else 0.0,
        gradient_leak=_ROUNDING if has_experts or device.type != "cpu" else 0.0,
    )


def faults(found: Differences, most: Tolerances, *, reference: str) -> list[str]:
    """What is wrong, the gravest first; empty where nothing is.

    reference: what packs are compared with, in words.
    """
    leak, leak_right = max(
        (found.leak, most.leak), (found.gradient_leak, most.gradient_leak), key=lambda pair: pair[0] - pair[1]
    )
    bits = "not one bit" if not leak_right else f"at most {leak_right:g}"
    loss = max(found.loss, found.scores)
    rules = (
        (
            found.leak <= most.leak and found.gradient_leak <= most.gradient_leak,
            f"a conversation moves others in its pack by {leak:.1e} ({bits} is right)",
        ),
        (
            found.hidden <= most.hidden,
            f"hidden states on packs differ by {found.hidden:.1e} from {reference} (at most {most.hidden:g} is "
            "rounding)",
        ),
        (
            not found.unmatched,
            f"{some_names(found.unmatched)} gets a gradient on packs or from {reference}, but not from both",
        ),
        (
            found.gradient <= most.gradient,
            f"the gradient of {found.worst_parameter} differs by {found.gradient:.1e} from {reference} (at most "
            f"{most.gradient:g} is rounding)",
        ),
        (
            loss <= most.loss,
            f"the loss from hidden states differs by {loss:.1e} from that of the model's own logits (at most "
            f"{most.loss:g} is rounding)",
        ),
    )
    return [text for is_right, text in rules if not is_right]
