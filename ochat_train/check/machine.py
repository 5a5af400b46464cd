"""The machine: versions of packages, GPUs and kernels, space on disks."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from data_pipeline.errors import UserError
from data_pipeline.hub_names import is_hub_id
from data_pipeline.prepared.dataset import MANIFEST
from ochat_train.check.findings import Finding, ok, problem, warning
from ochat_train.check.recipe_facts import RecipeFacts
from ochat_train.checkpoint.size import checkpoint_bytes
from ochat_train.checkpoint.state import checkpoints_dir
from ochat_train.model.attention.choose import attention_obstacles, choose_attention, missing_packages
from ochat_train.model.build import decoder_layers
from ochat_train.model.config import model_dtype
from ochat_train.model.float8 import float8_obstacles
from ochat_train.planning.memory import GIB
from ochat_train.recipe.sections import Recipe

_DISTRIBUTION = "ochat-train"
_SHOWN = ("torch", "deepspeed", "transformers")
_PREPARED_BYTES_PER_SOURCE_BYTE = 2  # a token is about four bytes of text and takes eight bytes: id and weight
_BFLOAT16_BYTES, _FLOAT32_BYTES = 2, 4
_HOPPER = (9, 0)


def check_versions() -> Iterator[Finding]:
    """Whether every package that this one requires is installed in a version that it supports, by its metadata."""
    try:
        metadata = importlib.metadata.metadata(_DISTRIBUTION)
        requirements = [Requirement(text) for text in importlib.metadata.requires(_DISTRIBUTION) or ()]
    except importlib.metadata.PackageNotFoundError:
        text = "runs from a folder without being installed, so the versions it needs are not known"
        yield warning("versions", _DISTRIBUTION, text, "install it, for example with `pip install -e .`")
        return
    python = SpecifierSet(str(metadata["Requires-Python"] or ""))
    if platform.python_version() not in python:
        yield problem("versions", "Python", f"{platform.python_version()} is not {python}", "use a supported Python")
    needed = [r for r in requirements if r.marker is None or r.marker.evaluate({"extra": ""})]
    wrong = False
    for requirement in needed:
        found = _version(requirement.name)
        if found is None or not requirement.specifier.contains(found, prereleases=True):
            wrong = True
            text = f"{found or 'not installed'}, but {requirement.specifier or 'any version'} is needed"
            remedy = f'pip install "{requirement.name}{requirement.specifier}"'
            yield problem("versions", requirement.name, text, remedy)
    if not wrong:
        shown = ", ".join(f"{name} {_version(name)}" for name in _SHOWN)
        yield ok("versions", "", f"{shown} and the other {len(needed) - len(_SHOWN)} packages are as needed")


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def check_gpus(facts: RecipeFacts) -> Iterator[Finding]:
    """The GPUs of this machine and the kernels that a run would use."""
    model = facts.recipe.model
    if not torch.cuda.is_available():
        yield from _kernels_without_gpu(model.attention)
        if model.float8:
            yield from _float8(facts, _HOPPER)
        return
    yield from _gpus()
    device = torch.device("cuda", 0)
    dtype, dropout = model_dtype(model, device), getattr(facts.config, "attention_dropout", 0.0) or 0.0
    kernel = choose_attention(model.attention, device=device, dtype=dtype, dropout=dropout)
    others = attention_obstacles(device=device, dtype=dtype, dropout=dropout).items()
    not_usable = "; ".join(f"{name}: {obstacle}" for name, obstacle in others if obstacle)
    yield ok("gpu", "model.attention", kernel + (f" (not usable: {not_usable})" if not_usable else ""))
    if model.float8:
        yield from _float8(facts, torch.cuda.get_device_capability(device))


def check_gpus_without_recipe() -> Iterator[Finding]:
    """The part of `check_gpus` that does not depend on the recipe."""
    yield from _gpus() if torch.cuda.is_available() else _kernels_without_gpu("auto")


def _gpus() -> Iterator[Finding]:
    for number in range(torch.cuda.device_count()):
        place, properties = f"GPU {number}", torch.cuda.get_device_properties(number)
        text = f"{properties.name}, {properties.total_memory / GIB:.0f} GiB, compute capability "
        text += f"{properties.major}.{properties.minor}"
        if properties.major < 8:
            remedy = "use an Ampere GPU or later, or model.precision: float32"
            yield problem("gpu", place, f"{text}: no bfloat16", remedy)
        else:
            yield ok("gpu", place, text)


def _kernels_without_gpu(wanted: str) -> Iterator[Finding]:
    """wanted: `model.attention` of the recipe."""
    packages = missing_packages()
    installed = ", ".join(name for name, missing in packages.items() if missing is None)
    choice = f"the first of these that fits the GPU: {installed}" if wanted == "auto" else wanted
    yield warning(
        "gpu",
        "",
        f"no GPU on this machine; the GPU host decides the compute capability and the attention kernel: {choice}",
        "run `ochat check` on the GPU host as well; on this machine a run would use the CPU",
    )
    if wanted != "auto" and packages[wanted] is not None:
        text = f"{wanted}: {packages[wanted]} on this machine"
        yield warning("gpu", "model.attention", text, "install it on the GPU host")


def _float8(facts: RecipeFacts, capability: tuple[int, int]) -> Iterator[Finding]:
    recipe, place = facts.recipe, "model.float8"
    obstacles = float8_obstacles(
        decoder_layers(facts.model),
        capability=capability,
        pack_length=recipe.train.pack_length_tokens,
        compiled=recipe.model.compile is not False,
    )
    for obstacle in obstacles:
        yield problem("gpu", place, f"true cannot be used: {obstacle}", "fix that, or remove model.float8")
    if not obstacles:
        yield ok("gpu", place, f"torchao {_version('torchao')}, and the shapes fit")


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
        facts.num_parameters,
        zero_stage=facts.memory.zero_stage,
        bfloat16=recipe.model.precision != "float32",
        num_ranks=facts.num_gpus,
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
