"""Small states inside the DeepSpeed engine: weights without a second copy, and the way back from a universal checkpoint.

DeepSpeed gives its optimizer flat tensors: in ZeRO 1 and 2 a rank's part of each group of parameters, in ZeRO 3 a rank's
parts of several parameters. They are copies of the weights; here they become the weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ochat_train.optimizer.adamw import SmallAdamW


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Where numbers of a parameter are in a flat tensor. name: of the parameter. start: in the flattened parameter.
    place: in the flat tensor. num: how many.
    """

    name: str
    start: int
    place: int
    num: int


def share_weights(engine: Any) -> None:
    """Let the optimizer of a new engine update the model's weights themselves, and free the copy of them."""
    zero = engine.optimizer
    stage = engine.zero_optimization_stage()
    if stage == 3:
        for flat, weights in zip(zero.fp32_partitioned_groups_flat, zero.fp16_partitioned_groups_flat, strict=True):
            _share(flat, weights)
    elif stage:
        rank = torch.distributed.get_rank(group=zero.dp_process_group)
        parts = [group[rank] for group in zero.parallel_partitioned_bit16_groups]
        for flat, weights in zip(zero.single_partition_of_fp32_groups, parts, strict=True):
            _share(flat, weights)
        zero._link_all_hp_params()  # they pointed into the copy


def _share(flat: torch.Tensor, weights: torch.Tensor) -> None:
    assert flat.dtype == weights.dtype and flat.shape == weights.shape, "DeepSpeed was told to keep the weights' dtype"
    flat.data = weights.data


def load_universal(engine: Any, folder: Path) -> None:
    """Take states from a universal checkpoint that the engine has loaded, which rounded them to the weights' dtype.

    folder: with a folder for each parameter. All ranks call it.
    """
    zero, optimizer = engine.optimizer, engine.optimizer.optimizer
    assert isinstance(optimizer, SmallAdamW), "the recipe says small states"
    for number, (flat, pieces) in enumerate(_flat_tensors(engine)):
        step = int(optimizer.state[flat]["step"])
        wide = {key: torch.zeros(flat.numel()) for key in ("fp32", "exp_avg", "exp_avg_sq")}
        for piece in pieces:
            for key, target in wide.items():
                source = torch.load(folder / piece.name / f"{key}.pt", weights_only=True, mmap=True)["param"]
                target[piece.place : piece.place + piece.num] = source.view(-1)[piece.start : piece.start + piece.num]
        optimizer.set_wide_state(flat, number=number, step=step, **wide)
    if engine.zero_optimization_stage() == 3:
        if zero.persistent_parameters:  # they are whole on every rank
            zero.persistent_parameters[0].partition(zero.persistent_parameters)
            zero.persistent_parameters[0].all_gather(zero.persistent_parameters)
    else:
        zero.update_lp_params()


def _flat_tensors(engine: Any) -> Iterator[tuple[torch.Tensor, list[Piece]]]:
    """The tensors that the optimizer updates on this rank, in the order of updates, and what is in each."""
    zero = engine.optimizer
    if engine.zero_optimization_stage() == 3:
        for flat, parameters in zip(zero.fp32_partitioned_groups_flat, zero.fp16_groups, strict=True):
            yield flat, list(_pieces_of_parts(zero, parameters))
        return
    for flat, parameters in zip(zero.single_partition_of_fp32_groups, zero.bit16_groups, strict=True):
        mappings = [(zero.param_names[parameter], parameter._hp_mapping) for parameter in parameters]
        yield (
            flat,
            [
                Piece(
                    name=name,
                    start=mapping.lp_fragment_address.start,
                    place=mapping.hp_fragment_address.start,
                    num=mapping.lp_fragment_address.numel,
                )
                for name, mapping in mappings
                if mapping is not None
            ],
        )


def _pieces_of_parts(zero: Any, parameters: list[Any]) -> Iterator[Piece]:
    """ZeRO 3 cuts every parameter into one part per rank, the last ones padded."""
    rank, place = torch.distributed.get_rank(group=zero.dp_process_group), 0
    for parameter in parameters:
        size = parameter.partition_numel()
        num = min(size, parameter.ds_numel - rank * size)
        if num > 0:
            yield Piece(name=zero.param_names[parameter], start=rank * size, place=place, num=num)
        place += size
