"""PEFT's linear module with an adapter, as it runs here in training. Imports PEFT: not to be imported without it."""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners import lora  # type: ignore[import-not-found, unused-ignore]

from ochat_train.adapter.build import ADAPTER


class TrainedLora(lora.Linear):
    """y = W x + B (scale * A x), with dropout of what A reads.

    PEFT multiplies B A x, which is as wide as y: its backward pass then writes a copy of the gradient of y. Here the
    scale is on the few numbers between A and B. Merging, names and files are PEFT's.
    """

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The result of one module for `x` [..., in], in the dtype of the base's."""
        if self.disable_adapters or self.merged or args or kwargs:
            found: torch.Tensor = super().forward(x, *args, **kwargs)
            return found
        low = self.lora_A[ADAPTER](self.lora_dropout[ADAPTER](x)) * self.scaling[ADAPTER]
        result: torch.Tensor = self.base_layer(x) + self.lora_B[ADAPTER](low)
        return result


def use_trained_lora(causal_lm: torch.nn.Module) -> None:
    """Let modules with a plain adapter run as `TrainedLora`, in place; those of DoRA stay PEFT's."""
    for module in causal_lm.modules():
        variants: Any = getattr(module, "lora_variant", {})
        if type(module) is lora.Linear and ADAPTER not in variants:
            module.__class__ = TrainedLora
