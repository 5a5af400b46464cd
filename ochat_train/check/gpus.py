"""GPUs, and the kernels that a run would use on them."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ochat_train.check.findings import Finding, ok, problem, warning
from ochat_train.check.recipe_facts import RecipeFacts
from ochat_train.check.versions import installed_version
from ochat_train.model.attention.choose import attention_obstacles, choose_attention, missing_packages
from ochat_train.model.attention.needs import attention_needs
from ochat_train.model.config import model_dtype
from ochat_train.model.float8 import float8_obstacles
from ochat_train.model.structure import decoder_layers
from ochat_train.planning.memory import GIB

_HOPPER = (9, 0)  # compute capability; what float8 is checked for where there is no GPU


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
    dtype, needs = model_dtype(model, device), attention_needs(facts.model)
    kernel = choose_attention(model.attention, device=device, dtype=dtype, needs=needs)
    others = attention_obstacles(device=device, dtype=dtype, needs=needs).items()
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
        yield ok("gpu", place, f"torchao {installed_version('torchao')}, and the shapes fit")
