"""Small states inside the DeepSpeed engine: weights without a second copy, and the way back from a universal
checkpoint.

DeepSpeed gives its optimizer flat tensors: in ZeRO 1 and 2 a rank's part of each group of parameters, in ZeRO 3 a
rank's parts of several parameters. They are copies of the weights; here they become the weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ochat_train.optimizer.adamw import SmallAdamW, wide_state

# Where DeepSpeed's files hold the flat tensors: ZeRO 1 and 2, ZeRO 3.
_OPTIMIZER, _BASE = "optimizer_state_dict", "base_optimizer_state"
_FLAT_KEYS = ("single_partition_of_fp32_groups", "fp32_flat_groups")


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


def has_small_states(engine: Any) -> bool:
    """Whether an engine's optimizer is `SmallAdamW`."""
    return isinstance(_inner_optimizer(engine), SmallAdamW)


def states_of_engine(engine: Any) -> str:
    """`optimizer.states` of an engine."""
    optimizer = _inner_optimizer(engine)
    return optimizer.states if isinstance(optimizer, SmallAdamW) else "float32"


def _inner_optimizer(engine: Any) -> Any:
    return getattr(engine.optimizer, "optimizer", engine.optimizer)  # without ZeRO there is no other around it


def alone(state: Any) -> Any:
    """DeepSpeed's optimizer state for `torch.save`, which writes the whole storage of a view: flat tensors that are
    parts of the weights of all ranks are copied to the CPU. Anything else unchanged.
    """
    inner = state.get(_OPTIMIZER) if isinstance(state, Mapping) else None
    if not isinstance(inner, Mapping):
        return state
    changed = {key: [_alone(flat) for flat in inner[key]] for key in _FLAT_KEYS if key in inner}
    return {**state, _OPTIMIZER: {**inner, **changed}}


def _alone(flat: torch.Tensor) -> torch.Tensor:
    is_part = flat.untyped_storage().nbytes() > flat.numel() * flat.element_size()
    return torch.empty_like(flat, device="cpu").copy_(flat.detach()) if is_part and flat.numel() else flat


def _share(flat: torch.Tensor, weights: torch.Tensor) -> None:
    assert flat.dtype == weights.dtype, "DeepSpeed was told to keep the weights' dtype"
    assert flat.shape == weights.shape, "they were copied from them"
    flat.data = weights.data


def widen(source: Path, target: Path) -> None:
    """Write a checkpoint's DeepSpeed files again, with float32 states under torch's names, as DeepSpeed's converter
    wants them. target: a new folder; files without states become links. Unpickles: the files must have been checked.
    """
    target.mkdir()
    for path in source.iterdir():
        if not path.name.endswith("_optim_states.pt"):
            (target / path.name).symlink_to(path.resolve())
            continue
        content = torch.load(path, map_location="cpu", weights_only=False)
        inner = content[_OPTIMIZER]
        [flat_key] = [key for key in _FLAT_KEYS if key in inner]
        inner_key = _OPTIMIZER if _OPTIMIZER in inner else _BASE
        states = inner[inner_key]["state"]
        wide = {number: wide_state(state, _padded(inner[flat_key][number], state)) for number, state in states.items()}
        inner[flat_key] = [wide[number].pop("fp32") for number in range(len(inner[flat_key]))]
        inner[inner_key] = {**inner[inner_key], "state": wide}
        torch.save(content, target / path.name)


def _padded(flat: torch.Tensor, state: Mapping[str, Any]) -> torch.Tensor:
    """A flat tensor with the padding that DeepSpeed leaves out when it saves it, and not when it saves its states."""
    flat = flat.detach()
    return torch.cat((flat, flat.new_zeros(state["first"].numel() - flat.numel())))


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
                content = torch.load(folder / piece.name / f"{key}.pt", weights_only=True, mmap=True)
                source = content["param"] if isinstance(content, Mapping) else content  # ZeRO 1 and 2, ZeRO 3
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
