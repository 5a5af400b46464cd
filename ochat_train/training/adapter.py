"""The adapter of a run: put on the base by every rank, and what its checkpoints say of it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch

from data_pipeline.errors import UserError
from data_pipeline.text_rules import some_names
from ochat_train.adapter.base_hash import base_sha256
from ochat_train.adapter.build import AddedAdapter, add_adapter
from ochat_train.adapter.quantize import quantise_base
from ochat_train.checkpoint.basis import AdapterBasis
from ochat_train.distributed.agreement import on_every_rank
from ochat_train.distributed.ranks import Ranks, on_main_rank
from ochat_train.model.config import model_dtype
from ochat_train.model.packed import PackedCausalLM
from ochat_train.recipe.recipe import Recipe


def put_adapter(
    recipe: Recipe, model: PackedCausalLM, new_token_ids: Sequence[int], ranks: Ranks
) -> AdapterBasis | None:
    """Put the recipe's adapter on the base, which is quantised before if the recipe says so. All ranks call it.

    new_token_ids: tokens that the base does not know. Returns what the adapter belongs to, None for a recipe without
    one. Raises UserError on all ranks where packages, GPU or base do not fit.
    """
    settings, causal_lm = recipe.adapter, model.causal_lm
    if settings is None:
        return None
    # DeepSpeed gives all ranks the weights of the first one, so its base is that of the run
    sha256 = on_main_rank(ranks, lambda: base_sha256(recipe.model, causal_lm))

    def add() -> AddedAdapter:
        if settings.type == "qlora":
            quantise_base(causal_lm, device=ranks.device, dtype=model_dtype(recipe.model, ranks.device))
        return add_adapter(causal_lm, settings, new_token_ids=new_token_ids, seed=recipe.seed)

    added = on_every_rank(ranks, add)
    return AdapterBasis(base_sha256=sha256, modules=added.modules, token_ids=added.token_ids)


class ReachedTensors:
    """Which trained tensors a step gave a gradient, by hooks on them. Make it before the DeepSpeed engine.

    A module whose weight the base reads without calling the module runs without its adapter: that would train, save and
    export an adapter that was never there.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self._missing = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        self._handles = [
            parameter.register_post_accumulate_grad_hook(partial(self._note, name))
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        ]

    def _note(self, name: str, parameter: torch.Tensor) -> None:
        self._missing.discard(name)

    def require_all(self) -> None:
        """Raise UserError after a step in which some had no gradient. Experts need not have one: none may be chosen."""
        for handle in self._handles:
            handle.remove()
        missing = sorted(name for name in self._missing if ".experts." not in name)
        if missing:
            names = sorted({name.partition(".lora_")[0].removeprefix("causal_lm.") for name in missing})
            raise UserError(
                "adapter.targets",
                f"the base does not call {len(names)} of the modules that have an adapter, which would do nothing "
                f"there: {some_names(names)}",
                "name targets without them",
            )
