"""Space on disks."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from data_pipeline.errors import UserError
from data_pipeline.hub_names import is_hub_id
from data_pipeline.prepared.dataset import MANIFEST
from data_pipeline.unfinished_folders import unfinished_folders
from ochat_train.check.findings import Finding, ok, problem, warning
from ochat_train.check.recipe_facts import RecipeFacts
from ochat_train.checkpoint.room import DiskNeed, bytes_in, existing, room_for, run_needs, size_text

_PREPARED_BYTES_PER_SOURCE_BYTE = 2  # a token is about four bytes of text and takes eight bytes: id and weight
_BFLOAT16_BYTES = 2


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
        there = existing(need.folder)
        if not there.is_dir():
            yield problem("disk", need.folder, f"{there} is a file", "choose another folder")
        elif not os.access(there, os.W_OK):
            yield problem("disk", need.folder, f"this user may not write to {there}", "choose another folder")
        disks.setdefault(there.stat().st_dev, []).append(need)
    for on_disk in disks.values():
        room = room_for(on_disk)
        if room.problem is None:
            yield ok("disk", room.disk, room.text)
        else:
            yield problem("disk", room.disk, room.text, room.problem.remedy)
    yield from _abandoned(
        Path(facts.recipe.data.prepared_dir).resolve().parent, Path(facts.recipe.output_dir).resolve()
    )
    if unknown is not None:
        raise unknown


def _abandoned(*parents: Path) -> Iterator[Finding]:
    """What killed commands left in folders where `ochat prepare` and `ochat export` write, and other hosts maybe."""
    for parent in dict.fromkeys(parents):
        for folder in unfinished_folders(parent):
            if folder.is_abandoned or folder.host is not None:
                text = f"{size_text(bytes_in(folder.path))}: {folder.text}"
                yield warning("disk", folder.path, text, folder.remedy)


def _prepared_need(facts: RecipeFacts) -> Iterator[DiskNeed]:
    folder = Path(facts.recipe.data.prepared_dir).resolve()
    if not (folder / MANIFEST).is_file():
        num_bytes = _PREPARED_BYTES_PER_SOURCE_BYTE * facts.local_source_bytes()
        yield DiskNeed(folder=folder, what="prepared data", num_bytes=num_bytes)


def _run_need(facts: RecipeFacts) -> Iterator[DiskNeed]:
    yield from run_needs(
        facts.recipe,
        num_parameters=facts.num_parameters,
        num_trained=facts.num_trained,
        zero_stage=facts.memory.zero_stage,
        num_ranks=facts.num_gpus,
        num_steps=facts.num_steps,
    )


def _download_need(facts: RecipeFacts) -> Iterator[DiskNeed]:
    from huggingface_hub import constants

    path = facts.recipe.model.path
    if path is not None and is_hub_id(path) and not facts.hub_model(path).is_cached:
        yield DiskNeed(
            folder=Path(constants.HF_HUB_CACHE).resolve(),
            what="download of the base",
            num_bytes=facts.num_parameters * _BFLOAT16_BYTES,
        )
