"""What a kernel of attention over packs is: a function and the facts that decide where it can be used.

Shape letters: T tokens of a pack, H query heads, G key/value heads, D head dimension, S sequences.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

HALF_PRECISION = frozenset((torch.bfloat16, torch.float16))


class AttentionFunction(Protocol):
    """Causal attention within each sequence of a pack, differentiable in query, key and value.

    query_THD, key_TGD, value_TGD: of one dtype; H is a multiple of G.
    cu_seqlens: int32[S + 1], where sequences begin and end, from 0 to T; empty sequences are allowed.
    max_seqlen: in tokens, no sequence is longer. scale: factor of the scores before the softmax.
    window: a token sees itself and the `window - 1` tokens before it; None sees all before it.
    dropout: probability with which attention weights become 0.
    Returns [T, H, D].
    """

    def __call__(
        self,
        query_THD: torch.Tensor,
        key_TGD: torch.Tensor,
        value_TGD: torch.Tensor,
        /,
        *,
        cu_seqlens: torch.Tensor,
        max_seqlen: int,
        scale: float,
        window: int | None,
        dropout: float,
    ) -> torch.Tensor:
        """See the class."""


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """One kernel; each has its own file, and its place in `kernels.KERNELS`.

    name: in recipes (`model.attention`) and messages.
    compilable: whether torch.compile can trace a decoder layer around it.
    has_dropout: whether it honours `dropout`; others refuse models with attention dropout.
    needs_gpu: whether it needs CUDA.
    dtypes: of query, key and value; None for all.
    capabilities: major CUDA compute capabilities that it runs on, None for all; if_not_capable: what to say on others.
    module: importable where the kernel is installed, None if it always is; if_missing: what to say where it is not.
    saved_operators: names of the torch operators whose results activation checkpointing keeps (`matmuls`).
    prepare: called once before the first use, outside compiled code.
    """

    name: str
    run: AttentionFunction
    compilable: bool
    has_dropout: bool
    needs_gpu: bool = True
    dtypes: frozenset[torch.dtype] | None = None
    capabilities: range | None = None
    if_not_capable: str = ""
    module: str | None = None
    if_missing: str = ""
    saved_operators: tuple[str, ...] = ()
    prepare: Callable[[], object] | None = None

    def missing_package(self) -> str | None:
        """What to say of a package that this machine lacks, None where the kernel is installed; whatever GPU it has."""
        return None if self.module is None or _is_installed(self.module) else self.if_missing

    def obstacle(self, *, device: torch.device, dtype: torch.dtype, dropout: float) -> str | None:
        """Why the kernel cannot be used here, None where it can. dropout: the model's attention dropout."""
        if self.needs_gpu and device.type != "cuda":
            return "it needs a CUDA GPU"
        if self.dtypes is not None and dtype not in self.dtypes:
            return "it needs bfloat16"
        if dropout and not self.has_dropout:
            return f"it has no dropout, and the model's attention_dropout is {dropout}"
        if self.capabilities is not None and torch.cuda.get_device_capability(device)[0] not in self.capabilities:
            return self.if_not_capable
        return self.missing_package()


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False
