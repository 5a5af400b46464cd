"""Trained rows of embedding and head beside frozen tables.

A token that is new to the base has to be learnt: its row of the embedding, so that the model can read it, and its row
of the head, so that the model can write it. The tables stay frozen and as they are; the trained rows are a small table
of their own, and replace theirs wherever the tables are used.

Shape letters: T tokens of a pack, K trained rows, D hidden size, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch

ROWS = "trained_rows"  # name of the module below, in the embedding and in the head


class TrainedRows(torch.nn.Module):
    """K rows of a table: `table.weight`, [K, D], in the dtype of the table.

    ids_K: int64, which rows, in ascending order. table: computes from these rows as the module of the whole table does.
    """

    def __init__(self, ids: Sequence[int], table: torch.nn.Module) -> None:
        super().__init__()
        self.ids_K: torch.Tensor
        self.register_buffer("ids_K", torch.tensor(list(ids), dtype=torch.int64), persistent=False)
        self.table = table

    @property
    def weight(self) -> torch.Tensor:
        """The trained rows, [K, D]."""
        weight = self.table.weight
        assert isinstance(weight, torch.Tensor)
        return weight


def train_rows(causal_lm: Any, ids: Sequence[int]) -> None:
    """Let these rows of embedding and head be trained, in place; tied tables share them. Nothing else is changed.

    The tables themselves are to be frozen. The rows begin with the values that the tables have.
    """
    if not ids:
        return
    rows = sorted(set(ids))
    embedding, head = causal_lm.get_input_embeddings(), causal_lm.get_output_embeddings()
    embedding.add_module(ROWS, TrainedRows(rows, _part_of(embedding, rows)))
    embedding.register_forward_hook(_with_embedded_rows)
    if head.weight is embedding.weight:
        head.__dict__[ROWS] = embedding.trained_rows  # not a module of the head: it is registered once
    else:
        head.add_module(ROWS, TrainedRows(rows, _part_of(head, rows)))
    head.register_forward_hook(_with_logits_of_rows)


def trained_ids(causal_lm: Any) -> list[int]:
    """The rows that `train_rows` lets be trained."""
    rows = getattr(causal_lm.get_input_embeddings(), ROWS, None)
    return [] if rows is None else [int(row) for row in rows.ids_K]


@torch.no_grad()
def merge_rows(causal_lm: Any) -> None:
    """Write the trained rows into the tables and remove them, in place."""
    for module in (causal_lm.get_input_embeddings(), causal_lm.get_output_embeddings()):
        rows = getattr(module, ROWS, None)
        if rows is None:
            continue
        module.weight[rows.ids_K] = rows.weight.to(module.weight.dtype)
        for key, hook in list(module._forward_hooks.items()):
            if hook in (_with_embedded_rows, _with_logits_of_rows):
                del module._forward_hooks[key]
        module._modules.pop(ROWS, None)
        module.__dict__.pop(ROWS, None)


def _part_of(module: Any, rows: Sequence[int]) -> Any:
    """A module of the same class and settings with only some rows: an embedding that scales its result still does."""
    part = copy.copy(module)
    for name in ("_parameters", "_buffers", "_modules", "_forward_hooks", "_forward_pre_hooks", "_backward_hooks"):
        part.__dict__[name] = copy.copy(module.__dict__[name])
    part._forward_hooks.clear()
    part._parameters["weight"] = torch.nn.Parameter(module.weight.detach()[list(rows)].clone())
    if "bias" in part._parameters:
        part._parameters["bias"] = None
    if isinstance(module, torch.nn.Embedding):
        part.num_embeddings, part.padding_idx = len(rows), None
    else:
        part.out_features = len(rows)
    return part


def _with_embedded_rows(module: Any, inputs: tuple[torch.Tensor, ...], embedded: torch.Tensor) -> torch.Tensor:
    """Forward hook of an embedding: the trained rows instead of the frozen ones."""
    input_ids, rows = inputs[0], module.trained_rows
    index = torch.searchsorted(rows.ids_K, input_ids).clamp_(max=len(rows.ids_K) - 1)
    is_trained = (rows.ids_K[index] == input_ids)[..., None]
    # where no token is trained, the result is still connected to the rows: every rank runs the same backward pass
    return torch.where(is_trained, rows.table(index), embedded)


def _with_logits_of_rows(module: Any, inputs: tuple[torch.Tensor, ...], logits: torch.Tensor) -> torch.Tensor:
    """Forward hook of a head, for whoever calls it: training reads the rows itself (model/packed.py)."""
    rows = module.trained_rows
    own = torch.nn.functional.linear(inputs[0], rows.weight)
    if module.bias is not None:
        own = own + module.bias[rows.ids_K]
    return logits.index_copy(-1, rows.ids_K, own)
