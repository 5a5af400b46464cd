"""The adapter of a recipe: its packages, what it is put on, and how much it trains."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import torch

from ochat_train.adapter.installed import require_peft
from ochat_train.adapter.quantize import check_kernels, layer_obstacle, package_obstacle, qlora_error
from ochat_train.adapter.targets import target_modules
from ochat_train.check.findings import Finding, from_error, ok, warning
from ochat_train.check.recipe_facts import RecipeFacts
from ochat_train.model.structure import decoder_layers
from ochat_train.system.requirements import installed_version

_AREA = "adapter"


def check_adapter(facts: RecipeFacts) -> Iterator[Finding]:
    """Targets that do not exist, a rank that is too large, packages, and for `qlora` GPU and layers."""
    settings = facts.recipe.adapter
    if settings is None:
        yield ok(_AREA, "adapter", "none: all weights are trained")
        return
    require_peft()
    names = target_modules(facts.model, settings)
    if settings.type == "qlora":
        yield from _qlora(facts)
    kinds = Counter(name.rpartition(".")[2] for name in names)
    shown = ", ".join(f"{name} {count}" for name, count in kinds.items())
    text = f"{settings.type} of rank {settings.rank}, scale {settings.scale:g}, on {len(names):,} modules ({shown})"
    trained = f"{facts.num_trained:,} of {facts.num_parameters:,} parameters"
    yield ok(_AREA, "adapter", f"{text} trains {trained}; peft {installed_version('peft')}")


def _qlora(facts: RecipeFacts) -> Iterator[Finding]:
    obstacles = list(filter(None, (package_obstacle(), layer_obstacle(decoder_layers(facts.model)))))
    for obstacle in obstacles:
        yield from from_error(_AREA, qlora_error(obstacle))
    if obstacles:
        return
    if torch.cuda.is_available():
        check_kernels(torch.device("cuda", 0))  # raises where they compute something else
    else:
        text = "no GPU on this machine: the kernels of bitsandbytes were not tried on one"
        yield warning(_AREA, "adapter.type", text, "run `ochat check` on the GPU host as well")
