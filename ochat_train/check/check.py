"""`ochat check`: every area that is checked, in one table, and the function that runs them all."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from data_pipeline.errors import UserError
from ochat_train.check.adapter import check_adapter
from ochat_train.check.data import check_classes, check_lengths, check_prepared_data, check_rows, check_sources
from ochat_train.check.disk import check_disk
from ochat_train.check.findings import Finding, from_error, ok, run_checks
from ochat_train.check.gpus import check_gpus, check_gpus_without_recipe
from ochat_train.check.hub import check_hub, check_push
from ochat_train.check.model import check_base, check_learning_rate, check_memory, check_template
from ochat_train.check.recipe_facts import RecipeFacts
from ochat_train.check.versions import check_versions
from ochat_train.check.weights import check_weights
from ochat_train.hub.models import ANSWER_SECONDS
from ochat_train.planning.time import find_gpu
from ochat_train.recipe.load import load_recipe
from ochat_train.recipe.recipe import Recipe
from ochat_train.system.library_output import quiet_libraries
from ochat_train.system.sizes import GIB


@dataclass(frozen=True, kw_only=True)
class Area:
    """What one check looks at. without_recipe: what it can look at when the recipe cannot be read; None for nothing."""

    name: str
    check: Callable[[RecipeFacts], Iterable[Finding]]
    without_recipe: Callable[[], Iterable[Finding]] | None = None


# The order of the findings. What others build on comes first.
AREAS: tuple[Area, ...] = (
    Area(name="versions", check=lambda facts: check_versions(), without_recipe=check_versions),
    Area(name="hub", check=check_hub),
    Area(name="template", check=check_template),
    Area(name="base", check=check_base),
    Area(name="weights", check=check_weights),
    Area(name="adapter", check=check_adapter),
    Area(name="sources", check=check_sources),
    Area(name="rows", check=check_rows),
    Area(name="lengths", check=check_lengths),
    Area(name="classes", check=check_classes),
    Area(name="prepared", check=check_prepared_data),
    Area(name="learning rate", check=check_learning_rate),
    Area(name="memory", check=check_memory),
    Area(name="disk", check=check_disk),
    Area(name="gpu", check=check_gpus, without_recipe=check_gpus_without_recipe),
    Area(name="push", check=check_push),
)


def check(
    path: Path,
    overrides: Sequence[str],
    *,
    num_gpus: int | None,
    gpu_memory_gib: float | None,
    areas: Sequence[Area] = AREAS,
) -> list[Finding]:
    """Everything that can be known about a recipe before it is trained. Never raises for what it finds.

    num_gpus, gpu_memory_gib: None for the GPUs of this machine, or one H100 if it has none.
    """
    for name in ("HF_HUB_ETAG_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT"):  # read by huggingface_hub when it is imported
        os.environ.setdefault(name, f"{ANSWER_SECONDS:.0f}")
    quiet_libraries()
    try:
        recipe = load_recipe(path, overrides)
    except UserError as error:
        possible = [(area.name, area.without_recipe) for area in areas if area.without_recipe is not None]
        return [*from_error("recipe", error, remedy="docs/recipe.md explains each key"), *run_checks(possible)]
    facts = _facts(recipe, num_gpus=num_gpus, gpu_memory_gib=gpu_memory_gib)
    return [
        ok("recipe", path, "every key is valid"),
        *run_checks([(area.name, partial(area.check, facts)) for area in areas]),
    ]


def _facts(recipe: Recipe, *, num_gpus: int | None, gpu_memory_gib: float | None) -> RecipeFacts:
    num_here = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if gpu_memory_gib is None and num_here:
        gpu_memory_gib = torch.cuda.get_device_properties(0).total_memory / GIB
    return RecipeFacts(
        recipe=recipe,
        num_gpus=num_gpus or max(num_here, 1),
        gpu_memory_gib=gpu_memory_gib or find_gpu("h100", memory_gib=None).memory_gib,
    )
