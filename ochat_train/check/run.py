"""`ochat check`: runs every check and puts the findings into words."""

from __future__ import annotations

import os
import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from data_pipeline.errors import UserError
from ochat_train.check.data import check_classes, check_lengths, check_prepared_data, check_sources
from ochat_train.check.facts import Facts
from ochat_train.check.findings import Check, Finding, ok, problem, run_checks
from ochat_train.check.hub import check_hub, check_push
from ochat_train.check.machine import check_disk, check_gpus, check_versions
from ochat_train.check.model import check_base, check_learning_rate, check_memory, check_template
from ochat_train.hub.models import ANSWER_SECONDS
from ochat_train.planning.memory import GIB
from ochat_train.planning.time import find_gpu
from ochat_train.recipe.load import load_recipe
from ochat_train.recipe.sections import Recipe
from ochat_train.system.quiet import quiet_libraries


def check(path: Path, overrides: Sequence[str], *, num_gpus: int | None, gpu_memory_gib: float | None) -> list[Finding]:
    """Everything that can be known about a recipe before it is trained. Never raises for what it finds.

    num_gpus, gpu_memory_gib: None for the GPUs of this machine, or one H100 where it has none.
    """
    for name in ("HF_HUB_ETAG_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT"):  # read by huggingface_hub when it is imported
        os.environ.setdefault(name, f"{ANSWER_SECONDS:.0f}")
    quiet_libraries()
    try:
        recipe = load_recipe(path, overrides)
    except UserError as error:
        without_recipe: list[tuple[str, Check]] = [("versions", check_versions), ("gpu", lambda: check_gpus(None))]
        return [*_recipe_problems(error), *run_checks(without_recipe)]
    here = torch.cuda.device_count() if torch.cuda.is_available() else 0
    memory = (
        torch.cuda.get_device_properties(0).total_memory / GIB if here else find_gpu("h100", memory_gib=None).memory_gib
    )
    facts = Facts(recipe=recipe, num_gpus=num_gpus or max(here, 1), gpu_memory_gib=gpu_memory_gib or memory)
    return [ok("recipe", f"{path}: every key is valid"), *run_checks(_checks(facts, recipe))]


def _checks(facts: Facts, recipe: Recipe) -> list[tuple[str, Check]]:
    """Every area and its check; what others build on comes first."""
    return [
        ("versions", check_versions),
        ("hub", lambda: check_hub(facts)),
        ("template", lambda: check_template(facts)),
        ("base", lambda: check_base(facts)),
        ("sources", lambda: check_sources(facts)),
        ("lengths", lambda: check_lengths(facts)),
        ("classes", lambda: check_classes(facts)),
        ("prepared", lambda: check_prepared_data(facts)),
        ("learning rate", lambda: check_learning_rate(facts)),
        ("memory", lambda: check_memory(facts)),
        ("disk", lambda: check_disk(facts)),
        ("gpu", lambda: check_gpus(facts)),
        ("push", lambda: check_push(recipe)),
    ]


def _recipe_problems(error: UserError) -> list[Finding]:
    """A finding for each of the problems that `load_recipe` lists below its first line."""
    first, *problems = str(error).split("\n")
    return [problem("recipe", text.strip(), "docs/recipe.md explains each key") for text in problems] or [
        problem("recipe", first)
    ]


def check_report(path: Path, findings: Sequence[Finding]) -> dict[str, Any]:
    """The document of `ochat check --json`."""
    count = Counter(finding.level for finding in findings)
    return {
        "recipe": str(path),
        "problems": count["problem"],
        "warnings": count["warning"],
        "findings": [asdict(finding) for finding in findings],
    }


def check_text(findings: Sequence[Finding]) -> str:
    """The findings as lines `level  area  finding`, remedies below."""
    width = max(len(finding.area) for finding in findings)
    lines = []
    for finding in findings:
        head = f"{finding.level:<7}  {finding.area:<{width}}  "
        text = finding.finding + (f"\n-> {finding.remedy}" if finding.remedy else "")
        lines.append(head + textwrap.indent(text, " " * len(head)).lstrip())
    return "\n".join(lines)
