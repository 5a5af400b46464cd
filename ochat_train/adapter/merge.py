"""An adapter merged into its base, in float32, and the numbers that prove it.

A linear module W with an adapter becomes one with W + scale B A; with DoRA, that matrix with rows of trained lengths.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from data_pipeline.errors import UserError
from ochat_train.adapter.build import ADAPTER
from ochat_train.adapter.quantize import dequantise_base
from ochat_train.adapter.token_rows import merge_rows


@torch.no_grad()
def widen(causal_lm: Any) -> Mapping[str, torch.dtype]:
    """Make every parameter float32, in place, with the values that the forward pass used: those of a quantised base are
    computed, once. Returns the dtypes before, by name. Buffers, such as rotary frequencies, are left unchanged.
    """
    dequantise_base(causal_lm, dtype=torch.float32)
    before = {}
    for name, parameter in causal_lm.named_parameters():
        before[name] = parameter.dtype
        parameter.data = parameter.data.float()
    return before


@torch.no_grad()
def merge_adapter(causal_lm: Any) -> None:
    """Replace modules with an adapter by plain ones with merged weights, and write trained rows into the tables.

    causal_lm: after `widen`. Raises UserError where a merged weight is not finite.
    """
    for name, module in list(_adapted(causal_lm)):
        try:
            module.merge(safe_merge=True, adapter_names=[ADAPTER])
        except ValueError as error:
            raise UserError("adapter", f"{name} cannot be merged: {error}", "export another step") from None
        causal_lm.set_submodule(name, module.get_base_layer())
    merge_rows(causal_lm)
    left = [name for name, _ in causal_lm.named_parameters() if "lora_" in name]
    assert not left, left


def remove_adapter(causal_lm: Any) -> None:
    """Replace modules with an adapter by those of the base; rows of tokens are left to `merge_rows`."""
    for name, module in list(_adapted(causal_lm)):
        causal_lm.set_submodule(name, module.get_base_layer())


@torch.no_grad()
def narrow(causal_lm: Any, dtypes: Mapping[str, torch.dtype]) -> None:
    """Store parameters in these dtypes, in place. dtypes: by name."""
    for name, parameter in causal_lm.named_parameters():
        parameter.data = parameter.data.to(dtypes[name])


def _adapted(causal_lm: Any) -> Iterator[tuple[str, Any]]:
    """Modules of PEFT with an adapter, by name."""
    from peft.tuners.lora import LoraLayer  # type: ignore[import-not-found, unused-ignore]

    return ((name, module) for name, module in causal_lm.named_modules() if isinstance(module, LoraLayer))
