"""GPUs, and the kernels that a run would use on them."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from data_pipeline.errors import UserError
from ochat_train.check.findings import Finding, from_error, ok, warning
from ochat_train.check.recipe_facts import RecipeFacts
from ochat_train.model.attention.choose import attention_obstacles, missing_packages
from ochat_train.model.build import is_compiled
from ochat_train.model.config import check_precision, model_dtype
from ochat_train.model.float8 import float8_error, float8_obstacles
from ochat_train.model.structure import decoder_layers
from ochat_train.recipe.sections.model import ModelSettings
from ochat_train.system.requirements import installed_version
from ochat_train.system.sizes import GIB

_HOPPER = (9, 0)  # compute capability; what float8 is checked for where there is no GPU


def check_gpus(facts: RecipeFacts) -> Iterator[Finding]:
    """The GPUs of this machine and the kernels that a run would use."""
    model = facts.recipe.model
    if not torch.cuda.is_available():
        yield from _kernels_without_gpu(model.attention)
        if model.float8:
            yield from _float8(facts, _HOPPER)
        return
    yield from _gpus(model)
    device = torch.device("cuda", 0)
    proven = facts.proven
    others = attention_obstacles(device=device, dtype=model_dtype(model, device), needs=proven.needs).items()
    not_usable = "; ".join(f"{name}: {obstacle}" for name, obstacle in others if obstacle)
    yield ok("gpu", "model.attention", proven.kernel + (f" (not usable: {not_usable})" if not_usable else ""))
    is_compiled(model, kernel=proven.kernel, device=device)  # raises where `model.compile` cannot be
    if model.float8:
        yield from _float8(facts, torch.cuda.get_device_capability(device))


def check_gpus_without_recipe() -> Iterator[Finding]:
    """The part of `check_gpus` that does not depend on the recipe."""
    yield from _gpus(None) if torch.cuda.is_available() else _kernels_without_gpu("auto")


def _gpus(model: ModelSettings | None) -> Iterator[Finding]:
    """model: of the recipe, if it can be read."""
    for number in range(torch.cuda.device_count()):
        place, properties = f"GPU {number}", torch.cuda.get_device_properties(number)
        text = f"{properties.name}, {properties.total_memory / GIB:.0f} GiB, compute capability "
        text += f"{properties.major}.{properties.minor}"
        try:
            if model is not None:
                check_precision(model, torch.device("cuda", number))
        except UserError as error:
            yield from from_error("gpu", error)
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
        yield from from_error("gpu", float8_error(obstacle))
    if not obstacles:
        yield ok("gpu", place, f"torchao {installed_version('torchao')}, and the shapes fit")
