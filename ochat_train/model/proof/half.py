"""A kernel that takes half precision only, in a small model: on the very calls that the model's layers make.

A whole model in half precision cannot tell a fault from rounding, which grows from layer to layer and sends tokens to
other experts. So the model runs in float32 with `sdpa`, which was proven, and what its layers ask of their attention
function is asked of the kernel as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ochat_train.model.attention.kernel import AttentionFunction
from ochat_train.model.proof.stopwatch import Stopwatch

_MOST_OUTPUT, _MOST_GRADIENT = 1e-2, 2e-2  # relative; rounding to bfloat16 gives 2e-3 to 5e-3


@dataclass(frozen=True, kw_only=True)
class AttentionCall:
    """What a layer asked for: tensors as in `kernel.AttentionFunction`, rounded to bfloat16, and its keywords."""

    tensors: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
    keywords: Mapping[str, Any]

    @property
    def kind(self) -> tuple[object, ...]:
        """What tells calls apart for a kernel: shapes and keywords, but not their values in tensors."""
        values = ((k, v if not isinstance(v, torch.Tensor) else tuple(v.shape)) for k, v in self.keywords.items())
        return (*(tuple(x.shape) for x in self.tensors), *values)


class Recorder:
    """An attention function that calls another one and notes the first call of each kind."""

    def __init__(self, run: AttentionFunction) -> None:
        self._run = run
        self.calls: dict[tuple[object, ...], AttentionCall] = {}

    def __call__(
        self, query_THD: torch.Tensor, key_TGD: torch.Tensor, value_TGE: torch.Tensor, /, **keywords: Any
    ) -> torch.Tensor:
        """Arguments as in `kernel.AttentionFunction`."""
        tensors = tuple(x.detach().bfloat16() for x in (query_THD, key_TGD, value_TGE))
        sinks_H = keywords.get("sinks_H")
        rounded = keywords if sinks_H is None else {**keywords, "sinks_H": sinks_H.detach().bfloat16()}
        call = AttentionCall(tensors=tensors, keywords=rounded)  # type: ignore[arg-type]
        self.calls.setdefault(call.kind, call)
        return self._run(query_THD, key_TGD, value_TGE, **keywords)


@dataclass(frozen=True, kw_only=True)
class CallErrors:
    """How far a kernel is from float32, relative; and whether sequences are kept apart bit for bit."""

    output: float
    gradient: float
    keeps_apart: bool


def call_errors(
    call: AttentionCall,
    kernel: AttentionFunction,
    reference: AttentionFunction,
    *,
    changed: slice,
    watch: Stopwatch | None = None,
) -> CallErrors:
    """Compare a kernel in bfloat16 with a reference in float32, forward and backward.

    changed: the tokens of one sequence, of which query, key and value are changed for `keeps_apart`. watch: counts the
    first call of the kernel, in which it is compiled, apart from the rest.
    """
    watch = Stopwatch() if watch is None else watch
    with watch.part("kernel_first_calls"):
        output, gradients = _run(kernel, call.tensors, call.keywords)
    with watch.part("kernel_comparison"):
        exact = tuple(x.float() for x in call.tensors)
        wanted, wanted_gradients = _run(reference, exact, call.keywords)
        return CallErrors(
            output=_apart(output, wanted),
            gradient=max(_apart(a, b) for a, b in zip(gradients, wanted_gradients, strict=True)),
            keeps_apart=_keeps_apart(call, kernel, output, changed),
        )


def _keeps_apart(call: AttentionCall, kernel: AttentionFunction, output: torch.Tensor, changed: slice) -> bool:
    others = torch.ones(len(output), dtype=torch.bool, device=output.device)
    others[changed] = False
    tensors = []
    for x in call.tensors:
        other = x.clone()
        other[changed] = x[changed].flip(0) + 1
        tensors.append(other)
    moved, _ = _forward(kernel, tensors, call.keywords)
    return torch.equal(output[others], moved.detach()[others])


def call_faults(found: Sequence[CallErrors], kernel: str) -> list[str]:
    """What is wrong with a kernel, the gravest first; empty where nothing is."""
    output = max((call.output for call in found), default=0.0)
    gradient = max((call.gradient for call in found), default=0.0)
    reference = "from attention in float32, for what the base's layers ask for"
    rules = (
        (all(call.keeps_apart for call in found), f"`{kernel}` lets conversations of a pack see each other"),
        (
            output <= _MOST_OUTPUT,
            f"`{kernel}` differs by {output:.1e} {reference} (at most {_MOST_OUTPUT:g} is rounding)",
        ),
        (
            gradient <= _MOST_GRADIENT,
            f"gradients of `{kernel}` differ by {gradient:.1e} {reference} (at most {_MOST_GRADIENT:g} is rounding)",
        ),
    )
    return [text for is_right, text in rules if not is_right]


def _run(
    function: AttentionFunction, tensors: Sequence[torch.Tensor], keywords: Mapping[str, Any]
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """The output, and the gradients of query, key, value and sinks for an upstream gradient that is always the same."""
    output, leaves = _forward(function, tensors, keywords)
    upstream = torch.randn(output.shape, generator=torch.Generator().manual_seed(0)).bfloat16()
    upstream = upstream.to(output.device, output.dtype)
    gradients = torch.autograd.grad(output, leaves, upstream, allow_unused=True, materialize_grads=True)
    return output.detach(), gradients


def _forward(
    function: AttentionFunction, tensors: Sequence[torch.Tensor], keywords: Mapping[str, Any]
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The output, and query, key, value and sinks that it can be differentiated by."""
    leaves = [x.detach().clone().requires_grad_() for x in tensors]
    more = dict(keywords)
    if more.get("sinks_H") is not None:
        more["sinks_H"] = more["sinks_H"].to(tensors[0].dtype).detach().clone().requires_grad_()
        leaves.append(more["sinks_H"])
    return function(*leaves[:3], **more), leaves


def _apart(a: torch.Tensor, b: torch.Tensor) -> float:
    difference, size = float((a.double() - b.double()).norm()), float(b.double().norm())
    return difference / size if size else difference
