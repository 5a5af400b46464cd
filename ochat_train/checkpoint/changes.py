"""What a run would do differently from the one that wrote a checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from data_pipeline.section import chosen_values, is_section
from ochat_train.checkpoint.state import CheckpointManifest
from ochat_train.recipe.sections import Recipe

NUM_GPUS, ZERO_STAGE = "number of GPUs", "deepspeed.zero_stage"


@dataclass(frozen=True, kw_only=True)
class Change:
    """A fact or setting that was `then` when the checkpoint was written and is `now` in this run."""

    name: str
    then: Any
    now: Any

    @property
    def is_of_layout(self) -> bool:
        """Whether it changes only how the state is cut into files, which can be converted."""
        return self.name in (NUM_GPUS, ZERO_STAGE)

    def __str__(self) -> str:
        return f"{self.name} ({self.then} -> {self.now})"


def changes_since(
    manifest: CheckpointManifest, *, num_ranks: int, recipe: Recipe, data_fingerprint: str
) -> tuple[Change, ...]:
    """All changes that decide the steps or the layout. Keys that only the checkpoint's recipe has are not compared."""
    then = {NUM_GPUS: manifest.num_ranks, "prepared data": manifest.data_fingerprint[:12]}
    now = {NUM_GPUS: num_ranks, "prepared data": data_fingerprint[:12]}
    then |= decisive_settings(manifest.recipe)
    now |= decisive_settings(recipe.model_dump(mode="json", by_alias=True))
    return tuple(Change(name=name, then=then[name], now=now[name]) for name in now if then[name] != now[name])


def decisive_settings(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a recipe that decide the steps, by dotted name; None for a key that the recipe does not have.

    The keys of `data` are left out: the fingerprint of the dataset that was prepared from them is compared instead.
    """
    chosen = chosen_values(Recipe, recipe, lambda flags: flags.decides_steps)
    del chosen["data"]
    settings: dict[str, Any] = {}
    for key, value in chosen.items():
        if is_section(Recipe.model_fields[key].annotation):
            settings |= {f"{key}.{name}": inner for name, inner in value.items()}
        else:
            settings[key] = value
    return settings


def listed(changes: Iterable[Change]) -> str:
    """Changes for a message: `seed (1 -> 2), train.epochs (3 -> 4)`."""
    return ", ".join(map(str, changes))
