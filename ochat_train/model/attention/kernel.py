"""What a kernel of attention over packs is: a function and the facts that decide where it can be used.

Shape letters: T tokens of a pack, H query heads, G key/value heads, D head dimension of query and key, E head dimension
of value and output, S sequences.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

from ochat_train.model.attention.needs import AttentionNeeds

HALF_PRECISION = frozenset((torch.bfloat16, torch.float16))


class AttentionFunction(Protocol):
    """Causal attention within each sequence of a pack, differentiable in query, key, value and sinks.

    For a query token i and the tokens j that it sees, with s(x) = softcap * tanh(x / softcap), or x without `softcap`:

        score_ij  = s(scale * query_i . key_j)
        output_i  = sum_j exp(score_ij) * value_j / (exp(sink) + sum_j exp(score_ij))

    query_THD, key_TGD, value_TGE: of one dtype; H is a multiple of G.
    cu_seqlens: int32[S + 1], where sequences begin and end, from 0 to T; empty sequences are allowed.
    max_seqlen: in tokens, no sequence is longer. scale: factor of the scores before the softmax.
    window: a token sees itself and the `window - 1` tokens before it; None sees all before it.
    dropout: probability with which attention weights become 0.
    softcap: bound of the scores, None for none.
    sinks_H: one logit per query head, which takes part in the sum of the softmax and has no value; None: no exp(sink).
    Returns [T, H, E].
    """

    def __call__(
        self,
        query_THD: torch.Tensor,
        key_TGD: torch.Tensor,
        value_TGE: torch.Tensor,
        /,
        *,
        cu_seqlens: torch.Tensor,
        max_seqlen: int,
        scale: float,
        window: int | None,
        dropout: float,
        softcap: float | None,
        sinks_H: torch.Tensor | None,
    ) -> torch.Tensor:
        """See the class."""


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """One kernel. Each is `KERNEL` in the file of its name, with a place in `KernelName` (`recipe/sections/model.py`).

    name: in recipes (`model.attention`) and messages; also of its file.
    compilable: whether torch.compile can trace a decoder layer around it.
    has_dropout, has_softcap, has_sinks: whether it honours these arguments; others refuse models that need them.
    needs_gpu: whether it needs CUDA.
    dtypes: of query, key and value; None for all.
    capabilities: major CUDA compute capabilities that it runs on, None for all; if_not_capable: what to say on others.
    limit: given what a model needs and the major compute capability, names another obstacle, or None.
    module: importable where the kernel is installed, None if it always is; if_missing: what to say where it is not.
    saved_operators: names of the torch operators whose results activation checkpointing keeps (`matmuls`).
    prepare: called once before the first use, outside compiled code.
    first_call: what a person is told to wait for where the first call takes seconds, empty where it does not.
    """

    name: str
    run: AttentionFunction
    compilable: bool
    has_dropout: bool
    has_softcap: bool
    has_sinks: bool
    needs_gpu: bool = True
    dtypes: frozenset[torch.dtype] | None = None
    capabilities: range | None = None
    if_not_capable: str = ""
    limit: Callable[[AttentionNeeds, int], str | None] | None = None
    module: str | None = None
    if_missing: str = ""
    saved_operators: tuple[str, ...] = ()
    prepare: Callable[[], object] | None = None
    first_call: str = ""

    def missing_package(self) -> str | None:
        """What to say of a package that this machine lacks, None where the kernel is installed; whatever GPU it has."""
        return None if self.module is None or _is_installed(self.module) else self.if_missing

    def missing_feature(self, needs: AttentionNeeds) -> str | None:
        """What the model needs and the kernel does not compute on any machine, None where it computes all."""
        if needs.dropout and not self.has_dropout:
            return f"it has no dropout, and the model's attention_dropout is {needs.dropout}"
        if needs.softcap and not self.has_softcap:
            return "it has no soft-capping of attention scores, and the model needs it"
        if needs.sinks and not self.has_sinks:
            return "it has no attention sinks, and the model needs them"
        return None

    def obstacle(self, *, device: torch.device, dtype: torch.dtype, needs: AttentionNeeds) -> str | None:
        """Why the kernel cannot be used here, None where it can. needs: of the model, from `attention_needs`."""
        if self.needs_gpu and device.type != "cuda":
            return "it needs a CUDA GPU"
        if self.dtypes is not None and dtype not in self.dtypes:
            return "it needs bfloat16"
        feature = self.missing_feature(needs)
        if feature is not None:
            return feature
        if self.capabilities is not None or self.limit is not None:
            major, _ = torch.cuda.get_device_capability(device)
            if self.capabilities is not None and major not in self.capabilities:
                return self.if_not_capable
            limit = self.limit(needs, major) if self.limit is not None else None
            if limit is not None:
                return limit
        return self.missing_package()


def one_head_dimension(needs: AttentionNeeds) -> str | None:
    """The limit of kernels whose heads have one dimension for query, key and value: a multiple of 8, 256 at most."""
    for query, value in sorted(needs.head_dims):
        if query != value:
            return f"its heads have one dimension, and the model's have {query} for query and key, {value} for value"
        if query % 8 or query > 256:
            return f"its head dimension is a multiple of 8 up to 256, and the model's is {query}"
    return None


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False
