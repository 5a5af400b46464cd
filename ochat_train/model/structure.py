"""Where a causal LM of `transformers` keeps its decoder layers and its language-model head, under whatever name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from data_pipeline.errors import UserError
from ochat_train.model.base_class import backbone, text_config


def decoder_layers(causal_lm: Any) -> Any:
    """The list of decoder layers, of the text part where there are several.

    Raises UserError for a model with no such list, or with several that could be it.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    decoder = backbone(causal_lm).get_decoder()
    lists = list(_outermost_lists(decoder))
    marked = [found for found in lists if all(isinstance(layer, GradientCheckpointingLayer) for layer in found)]
    if len(marked) == 1:
        return marked[0]
    num_layers = getattr(text_config(causal_lm.config), "num_hidden_layers", None)
    for candidates in (marked, lists):
        as_many = [found for found in candidates if len(found) == num_layers]
        if len(as_many) == 1:
            return as_many[0]
    raise UserError(
        "model",
        f"{causal_lm.config.model_type} does not have its decoder layers in one list",
        "use another base",
    )


def _outermost_lists(module: torch.nn.Module) -> Iterator[torch.nn.ModuleList]:
    """Lists of modules that are not inside another list, without empty ones."""
    for child in module.children():
        if isinstance(child, torch.nn.ModuleList):
            if len(child):
                yield child
        else:
            yield from _outermost_lists(child)


def check_head(causal_lm: Any) -> None:
    """Raise UserError for a language-model head that is not one matrix, with or without a bias."""
    head = causal_lm.get_output_embeddings()
    if not isinstance(head, torch.nn.Linear):
        found = "no language-model head" if head is None else f"a language-model head of type {type(head).__name__}"
        raise UserError(
            "model", f"{causal_lm.config.model_type} has {found}, which the loss cannot use", "use another base"
        )
