"""Room on disks: what a run will take, said in the same words by `ochat check` and at the start of a training."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.errors import Problem
from ochat_train.checkpoint.state import checkpoints_dir
from ochat_train.optimizer.size import STATE_SIZES
from ochat_train.recipe.recipe import Recipe
from ochat_train.system.sizes import GIB

_BFLOAT16_BYTES, _FLOAT32_BYTES = 2, 4
_MARGIN_BYTES = 1 << 20  # of every rank: names, settings and random number states beside the tensors
_REMEDY = "free some space, choose another output_dir, or lower checkpoint.keep_last"


@dataclass(frozen=True, kw_only=True)
class DiskNeed:
    """Space that something will take. folder: where it will be written, need not exist yet."""

    folder: Path
    what: str
    num_bytes: float


@dataclass(frozen=True, kw_only=True)
class Room:
    """Whether needs on one disk fit on it. text: what is needed and what is free. problem: None where they fit."""

    disk: Path
    text: str
    problem: Problem | None


def existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    return next(parent for parent in (folder, *folder.parents) if parent.exists())


def room_for(needs: Sequence[DiskNeed]) -> Room:
    """Compare needs, all on one disk, with what is free on it."""
    disk = existing(needs[0].folder)
    free, needed = shutil.disk_usage(disk).free, sum(need.num_bytes for need in needs)
    parts = ", ".join(f"{need.what} {size_text(need.num_bytes)}" for need in needs)
    text = f"about {size_text(needed)} needed ({parts}), {size_text(free)} free"
    found = Problem(place=str(disk), problem=text, remedy=_REMEDY) if free < needed else None
    return Room(disk=disk, text=text, problem=found)


def run_needs(
    recipe: Recipe,
    *,
    num_parameters: int,
    num_trained: int,
    zero_stage: int,
    num_ranks: int,
    num_steps: int | None,
    keeps_earlier: bool = True,
) -> Iterator[DiskNeed]:
    """The checkpoints of a run, less those that exist already, and an export.

    num_trained: parameters that the optimizer changes. num_steps: of the run, None if not known yet.
    keeps_earlier: whether checkpoints in the folder are the run's own, which it continues or replaces.
    """
    size = checkpoint_bytes(
        num_trained,
        zero_stage=zero_stage,
        bfloat16=recipe.model.precision != "float32",
        num_ranks=num_ranks,
        states=recipe.optimizer.states,
    )
    number = num_checkpoints(recipe, num_steps=num_steps)
    folder = Path(recipe.output_dir).resolve()
    there = bytes_in(checkpoints_dir(folder)) if keeps_earlier else 0
    yield DiskNeed(folder=folder, what=f"{number} checkpoint(s)", num_bytes=max(size, number * size - there))
    parameter_bytes = _FLOAT32_BYTES if recipe.model.precision == "float32" else _BFLOAT16_BYTES
    yield DiskNeed(folder=folder, what="an export", num_bytes=num_parameters * parameter_bytes)


def checkpoint_bytes(
    num_parameters: int, *, zero_stage: int, bfloat16: bool, num_ranks: int, states: str = "float32"
) -> int:
    """Size of a checkpoint: AdamW's two moments and what is kept of master weights, the tensors that ZeRO updates, and
    the weights. states: `optimizer.states`.
    """
    width, size = (2 if bfloat16 else 4), STATE_SIZES[states]
    per_parameter = size.moments
    if zero_stage or bfloat16:
        masters = size.masters if bfloat16 else 0.0
        per_parameter += masters + width if size.shares_weights else 4.0
    if zero_stage < 3:  # stage 3 has the weights only once
        per_parameter += width
    return math.ceil(num_parameters * per_parameter) + num_ranks * _MARGIN_BYTES


def bytes_in(folder: Path) -> int:
    """Bytes of the files below a folder, without those that a run deletes meanwhile."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += os.stat(os.path.join(parent, name)).st_size
    return total


def num_checkpoints(recipe: Recipe, *, num_steps: int | None) -> int:
    """The most checkpoints that a run has at a time: those kept, the best, and one that is written before an old one is
    deleted.

    num_steps: of the run, None if not known yet.
    """
    every = recipe.checkpoint.save_every_steps
    if every is None:
        return 1
    most = recipe.checkpoint.keep_last + 1 + bool(recipe.data.validation_ratio)
    return most if num_steps is None else min(most, -(-num_steps // every))


def size_text(size: float) -> str:
    """A size in bytes, for people."""
    return f"{size / GIB:.1f} GiB" if size >= 0.1 * GIB else f"{size / 2**20:.1f} MiB"
