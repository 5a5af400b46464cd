"""Space on disks."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.errors import UserError
from data_pipeline.hub_names import is_hub_id
from data_pipeline.prepared.dataset import MANIFEST
from ochat_train.check.findings import Finding, ok, problem
from ochat_train.check.recipe_facts import RecipeFacts
from ochat_train.checkpoint.size import checkpoint_bytes
from ochat_train.checkpoint.state import checkpoints_dir
from ochat_train.planning.memory import GIB
from ochat_train.recipe.recipe import Recipe

_PREPARED_BYTES_PER_SOURCE_BYTE = 2  # a token is about four bytes of text and takes eight bytes: id and weight
_BFLOAT16_BYTES, _FLOAT32_BYTES = 2, 4


@dataclass(frozen=True, kw_only=True)
class DiskNeed:
    """Space that something will take. folder: where it will be written, need not exist yet."""

    folder: Path
    what: str
    num_bytes: float


def check_disk(facts: RecipeFacts) -> Iterator[Finding]:
    """Whether there is space for prepared data, checkpoints, an export and a base that is not downloaded yet; per
    disk.
    """
    needs: list[DiskNeed] = []
    unknown: UserError | None = None
    for find in (_prepared_need, _run_need, _download_need):
        try:
            needs += find(facts)
        except UserError as error:
            unknown = error
    disks: dict[int, list[DiskNeed]] = {}
    for need in needs:
        existing = _existing(need.folder)
        if not os.access(existing, os.W_OK):
            yield problem("disk", need.folder, f"this user may not write to {existing}", "choose another folder")
        disks.setdefault(existing.stat().st_dev, []).append(need)
    for on_disk in disks.values():
        yield _disk_finding(on_disk)
    if unknown is not None:
        raise unknown


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    return next(parent for parent in (folder, *folder.parents) if parent.exists())


def _disk_finding(needs: Sequence[DiskNeed]) -> Finding:
    """needs: all on one disk."""
    disk = _existing(needs[0].folder)
    free, needed = shutil.disk_usage(disk).free, sum(need.num_bytes for need in needs)
    parts = ", ".join(f"{need.what} {_size(need.num_bytes)}" for need in needs)
    text = f"about {_size(needed)} needed ({parts}), {_size(free)} free"
    if free < needed:
        return problem("disk", disk, text, "free some space, choose another output_dir, or lower checkpoint.keep_last")
    return ok("disk", disk, text)


def _prepared_need(facts: RecipeFacts) -> Iterator[DiskNeed]:
    folder = Path(facts.recipe.data.prepared_dir).resolve()
    if not (folder / MANIFEST).is_file():
        num_bytes = _PREPARED_BYTES_PER_SOURCE_BYTE * facts.local_source_bytes()
        yield DiskNeed(folder=folder, what="prepared data", num_bytes=num_bytes)


def _run_need(facts: RecipeFacts) -> Iterator[DiskNeed]:
    recipe = facts.recipe
    size = checkpoint_bytes(
        facts.num_trained,
        zero_stage=facts.memory.zero_stage,
        bfloat16=recipe.model.precision != "float32",
        num_ranks=facts.num_gpus,
        states=recipe.optimizer.states,
    )
    number = num_checkpoints(recipe, num_steps=facts.num_steps)
    folder = Path(recipe.output_dir).resolve()
    there = sum(file.stat().st_size for file in checkpoints_dir(folder).rglob("*") if file.is_file())
    yield DiskNeed(folder=folder, what=f"{number} checkpoint(s)", num_bytes=max(size, number * size - there))
    parameter_bytes = _FLOAT32_BYTES if recipe.model.precision == "float32" else _BFLOAT16_BYTES
    yield DiskNeed(folder=folder, what="an export", num_bytes=facts.num_parameters * parameter_bytes)


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


def _download_need(facts: RecipeFacts) -> Iterator[DiskNeed]:
    from huggingface_hub import constants

    path = facts.recipe.model.path
    if path is not None and is_hub_id(path) and not facts.hub_model(path).is_cached:
        yield DiskNeed(
            folder=Path(constants.HF_HUB_CACHE).resolve(),
            what="download of the base",
            num_bytes=facts.num_parameters * _BFLOAT16_BYTES,
        )


def _size(size: float) -> str:
    return f"{size / GIB:.1f} GiB" if size >= 0.1 * GIB else f"{size / 2**20:.1f} MiB"
