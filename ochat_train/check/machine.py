"""The machine: versions of packages, GPUs and kernels, room on disks."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from data_pipeline.errors import UserError
from data_pipeline.hub_names import is_hub_id
from data_pipeline.prepared.dataset import MANIFEST
from ochat_train.check.facts import Facts
from ochat_train.check.findings import Finding, ok, problem, warning
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
_BFLOAT16_BYTES = 2
_HOPPER = (9, 0)


def check_versions() -> Iterator[Finding]:
    """Every package that this one asks for is there in a version that it takes, by its own metadata."""
    try:
        metadata = importlib.metadata.metadata(_DISTRIBUTION)
        requirements = [Requirement(text) for text in importlib.metadata.requires(_DISTRIBUTION) or ()]
    except importlib.metadata.PackageNotFoundError:
        remedy = "install it, for example with `pip install -e .`"
        yield warning(
            "versions", f"{_DISTRIBUTION} runs from a folder without being installed: versions are not known", remedy
        )
        return
    python = SpecifierSet(str(metadata["Requires-Python"] or ""))
    if platform.python_version() not in python:
        yield problem("versions", f"Python {platform.python_version()} is not {python}", "use a supported Python")
    needed = [r for r in requirements if r.marker is None or r.marker.evaluate({"extra": ""})]
    wrong = False
    for requirement in needed:
        found = _version(requirement.name)
        if found is None or not requirement.specifier.contains(found, prereleases=True):
            wrong = True
            text = f"{requirement.name} {found or 'is not there'}: {requirement.specifier or 'any version'} is needed"
            yield problem("versions", text, f'pip install "{requirement.name}{requirement.specifier}"')
    if not wrong:
        shown = ", ".join(f"{name} {_version(name)}" for name in _SHOWN)
        yield ok("versions", f"{shown} and the other {len(needed) - len(_SHOWN)} packages are as needed")


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def check_gpus(facts: Facts | None) -> Iterator[Finding]:
    """GPUs of this machine and the kernels that a run would use; facts: None where the recipe cannot be read."""
    if not torch.cuda.is_available():
        yield from _kernels_without_gpu(facts)
        return
    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        text = f"GPU {number}: {properties.name}, {properties.total_memory / GIB:.0f} GiB, compute capability "
        text += f"{properties.major}.{properties.minor}"
        if properties.major < 8:
            yield problem("gpu", f"{text}: no bfloat16", "use an Ampere GPU or later, or model.precision: float32")
        else:
            yield ok("gpu", text)
    if facts is None:
        return
    device, settings = torch.device("cuda", 0), facts.recipe.model
    dtype, dropout = model_dtype(settings, device), getattr(facts.config, "attention_dropout", 0.0) or 0.0
    kernel = choose_attention(settings.attention, device=device, dtype=dtype, dropout=dropout)
    others = attention_obstacles(device=device, dtype=dtype, dropout=dropout).items()
    not_usable = "; ".join(f"{name}: {obstacle}" for name, obstacle in others if obstacle)
    yield ok("gpu", f"attention: {kernel}" + (f" (not usable: {not_usable})" if not_usable else ""))
    if settings.float8:
        yield from _float8(facts, torch.cuda.get_device_capability(device))


def _kernels_without_gpu(facts: Facts | None) -> Iterator[Finding]:
    remedy = "run `ochat check` on the GPU host, too; on this machine a run would use the CPU"
    packages = missing_packages()
    there = ", ".join(name for name, missing in packages.items() if missing is None)
    wanted = "auto" if facts is None else facts.recipe.model.attention
    choice = f"the first of these that fits the GPU: {there}" if wanted == "auto" else wanted
    yield warning(
        "gpu", f"no GPU here; compute capability is decided on the GPU host, and the attention kernel: {choice}", remedy
    )
    if wanted != "auto" and packages[wanted] is not None:
        yield warning(
            "gpu", f"model.attention: {wanted}: {packages[wanted]} on this machine", "install it on the GPU host"
        )
    if facts is not None and facts.recipe.model.float8:
        yield from _float8(facts, _HOPPER)


def _float8(facts: Facts, capability: tuple[int, int]) -> Iterator[Finding]:
    recipe = facts.recipe
    problems = float8_obstacles(
        decoder_layers(facts.model),
        capability=capability,
        pack_length=recipe.train.pack_length_tokens,
        compiled=recipe.model.compile is not False,
    )
    for text in problems:
        yield problem("gpu", f"model.float8: true cannot be used: {text}", "mend that, or remove model.float8")
    if not problems:
        yield ok("gpu", f"float8: torchao {_version('torchao')}, and the shapes fit")


def check_disk(facts: Facts) -> Iterator[Finding]:
    """Whether prepared data, checkpoints, an export and a base that is not here yet have room; disk by disk."""
    needs: list[tuple[Path, str, float]] = []
    unknown: UserError | None = None
    for find in (_prepared_need, _run_need, _download_need):
        try:
            needs += find(facts)
        except UserError as error:
            unknown = error
    disks: dict[int, list[tuple[Path, str, float]]] = {}
    for folder, what, size in needs:
        existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
        if not os.access(existing, os.W_OK):
            yield problem("disk", f"{folder}: this user may not write to {existing}", "choose another folder")
        disks.setdefault(existing.stat().st_dev, []).append((existing, what, size))
    for entries in disks.values():
        free, needed = shutil.disk_usage(entries[0][0]).free, sum(size for _, _, size in entries)
        parts = ", ".join(f"{what} {_size(size)}" for _, what, size in entries)
        text = f"about {_size(needed)} needed ({parts}), {_size(free)} free"
        if free < needed:
            yield problem("disk", text, "make room, choose another output_dir, or lower checkpoint.keep_last")
        else:
            yield ok("disk", text)
    if unknown is not None:
        raise unknown


def _prepared_need(facts: Facts) -> Iterator[tuple[Path, str, float]]:
    folder = Path(facts.recipe.data.prepared_dir).resolve()
    if not (folder / MANIFEST).is_file():
        yield folder, "prepared data", float(_PREPARED_BYTES_PER_SOURCE_BYTE * facts.local_source_bytes())


def _run_need(facts: Facts) -> Iterator[tuple[Path, str, float]]:
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
    yield folder, f"{number} checkpoint(s)", float(max(size, number * size - there))
    yield (
        folder,
        "an export",
        float(facts.num_parameters * (4 if recipe.model.precision == "float32" else _BFLOAT16_BYTES)),
    )


def num_checkpoints(recipe: Recipe, *, num_steps: int | None) -> int:
    """Most checkpoints that a run has at a time: those kept, the best, and the one being written before an old one
    goes.

    num_steps: of the run, None where it is not known how many it will have.
    """
    every = recipe.checkpoint.save_every_steps
    if every is None:
        return 1
    most = recipe.checkpoint.keep_last + 1 + bool(recipe.data.validation_ratio)
    return most if num_steps is None else min(most, -(-num_steps // every))


def _download_need(facts: Facts) -> Iterator[tuple[Path, str, float]]:
    from huggingface_hub import constants

    path = facts.recipe.model.path
    if path is not None and is_hub_id(path) and not facts.hub_model(path).is_cached:
        yield (
            Path(constants.HF_HUB_CACHE).resolve(),
            "download of the base",
            float(facts.num_parameters * _BFLOAT16_BYTES),
        )


def _size(size: float) -> str:
    return f"{size / GIB:.1f} GiB" if size >= 0.1 * GIB else f"{size / 2**20:.1f} MiB"
