"""Gradients of a step's packs, summed in float32 where the model is bfloat16.

DeepSpeed's stage 1 reduces gradients once per step, in the last backward pass, but adds them up in the model's own
dtype until then: in bfloat16 a small gradient vanishes in a large sum. Here the sums are float32, and are rounded
to bfloat16 once, just before DeepSpeed reduces them over GPUs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from functools import partial

import torch


class GradientSum:
    """Hooks on parameters that keep float32 sums over the backward passes of a step.

    Make it before the DeepSpeed engine: hooks run in the order in which they were registered, and DeepSpeed's must find
    the sum. num_backwards: backward passes of a step. After the last one `grad` is the sum; until then it is None.
    """

    def __init__(self, parameters: Iterable[torch.nn.Parameter], *, num_backwards: int) -> None:
        self._num_backwards = num_backwards
        self._sums: dict[int, torch.Tensor] = {}
        self._num_added: Counter[int] = Counter()
        for number, parameter in enumerate(parameters):
            parameter.register_post_accumulate_grad_hook(partial(self._add, number))

    @torch.no_grad()
    def _add(self, number: int, parameter: torch.Tensor) -> None:
        gradient = parameter.grad
        assert gradient is not None, "the hook runs after a gradient was written"
        self._num_added[number] += 1
        if self._num_added[number] == self._num_backwards:
            self._num_added[number] = 0
            gradient.copy_(self._sums.pop(number).add_(gradient))
        elif number in self._sums:
            self._sums[number].add_(gradient)
            parameter.grad = None
        else:
            self._sums[number] = gradient.float()
            parameter.grad = None
