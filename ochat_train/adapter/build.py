"""Puts an adapter on a base: PEFT's modules instead of linear ones, and trained rows for new tokens.

The model stays the object of `transformers` that it was, with its own `forward`, attention and names; PEFT's wrapper
around a whole model is not used. A linear module `q_proj` becomes a module of PEFT that holds it as
`q_proj.base_layer`, beside `q_proj.lora_A.default` and `q_proj.lora_B.default`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ochat_train.adapter.installed import require_peft
from ochat_train.adapter.targets import target_modules
from ochat_train.adapter.token_rows import train_rows
from ochat_train.recipe.sections.adapter import AdapterSettings

ADAPTER = "default"  # PEFT's name for the one adapter of a model


@dataclass(frozen=True, kw_only=True)
class AddedAdapter:
    """What `add_adapter` did. modules: full names of those that have an adapter, before it. token_ids: trained rows."""

    modules: Sequence[str]
    token_ids: Sequence[int]


def peft_config(settings: AdapterSettings, *, modules: Sequence[str]) -> Any:
    """The settings as PEFT's `LoraConfig`. modules: full names, or the ends of names that fit nothing else."""
    from peft import LoraConfig

    init: Any = True if settings.init == "default" else settings.init
    alpha: Any = int(settings.lora_alpha) if settings.lora_alpha == int(settings.lora_alpha) else settings.lora_alpha
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.rank,
        lora_alpha=alpha,
        lora_dropout=settings.dropout,
        use_rslora=settings.rslora,
        use_dora=settings.dora,
        init_lora_weights=init,
        target_modules=list(modules),
        bias="none",
    )


def add_adapter(
    causal_lm: Any, settings: AdapterSettings, *, new_token_ids: Sequence[int] = (), seed: int = 0
) -> AddedAdapter:
    """Freeze the base and put an adapter on it, in place; the result is at first that of the base.

    causal_lm: a causal LM of `transformers`, on the CPU or where it will run. new_token_ids: tokens that the base does
    not know, whose rows of embedding and head are trained too. seed: of the first values of A, the same on every rank;
    the caller's random numbers do not change.
    Raises UserError where PEFT is missing or the targets do not fit the base.
    """
    require_peft()
    from peft import inject_adapter_in_model

    from ochat_train.adapter.modules import use_trained_lora

    modules = target_modules(causal_lm, settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(peft_config(settings, modules=modules), causal_lm, adapter_name=ADAPTER)
    use_trained_lora(causal_lm)
    train_rows(causal_lm, new_token_ids)
    causal_lm.get_input_embeddings().register_forward_hook(_require_gradient)
    dtype = causal_lm.get_input_embeddings().weight.dtype
    for parameter in causal_lm.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)
    return AddedAdapter(modules=modules, token_ids=sorted(set(new_token_ids)))


def _require_gradient(module: torch.nn.Module, inputs: Any, embedded: torch.Tensor) -> None:
    """Forward hook of the embedding: one compiled function fits all layers, as the input of each has a gradient."""
    if torch.is_grad_enabled() and not embedded.requires_grad:
        embedded.requires_grad_()
