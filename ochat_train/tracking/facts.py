"""What trackers are told about a run before its first step. None of it comes from the environment."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch

from data_pipeline.prepared.dataset import Manifest
from ochat_train.distributed.ranks import Ranks
from ochat_train.recipe.recipe import Recipe
from ochat_train.system.sizes import GIB
from ochat_train.system.versions import library_versions
from ochat_train.tracking.protocol import RunFacts


def run_facts(recipe: Recipe, manifest: Manifest, ranks: Ranks, *, first_step: int) -> RunFacts:
    """The facts of a run that continues after `first_step`."""
    versions = {"python": platform.python_version(), **library_versions()}
    if torch.version.cuda:
        versions["cuda"] = torch.version.cuda
    return RunFacts(
        name=recipe.name,
        output_dir=Path(recipe.output_dir),
        first_step=first_step,
        recipe=recipe.model_dump(mode="json", by_alias=True),
        classes=manifest.classes,
        ledger=manifest.ledger,
        hardware=_hardware(ranks),
        versions=versions,
    )


def _hardware(ranks: Ranks) -> dict[str, str | int | float | None]:
    hardware: dict[str, str | int | float | None] = {
        "ranks": ranks.num_ranks,
        "device": ranks.device.type,
        "cpus_per_host": os.cpu_count(),
    }
    if ranks.device.type == "cuda":
        gpu = torch.cuda.get_device_properties(ranks.device)
        hardware |= {"gpu": gpu.name, "gpu_memory_gib": round(gpu.total_memory / GIB, 1)}
        hardware["gpus_per_host"] = torch.cuda.device_count()
    return hardware
