"""What a run would do differently from the one that wrote a checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from data_pipeline.section import chosen_values, inner_section, is_section
from ochat_train.checkpoint.basis import UNKNOWN_BASIS, RunBasis, config_entries, flat_values
from ochat_train.checkpoint.earlier_plan import plan_of
from ochat_train.checkpoint.state import CheckpointManifest
from ochat_train.recipe.recipe import Recipe

NUM_GPUS, ZERO_STAGE = "number of GPUs", "deepspeed.zero_stage"
OFFLOAD = "deepspeed.offload_optimizer"  # another class of optimizer, which does not round alike
STATES = "optimizer.states"  # the same, and other states
PRECISION = "precision of the weights"  # float32 weights have no master copies beside them
# Keys of an adapter that say how it is trained, and not what its tensors are.
ADAPTER_HABITS = ("adapter.dropout", "adapter.init")
_RAW = "deepspeed.config"
# Keys of DeepSpeed's configuration, with all below them, that change no number: what is written down, and when it
# communicates. docs/resume.md lists them.
IDLE_KEYS = (
    "comms_logger",
    "csv_monitor",
    "dump_state",
    "flops_profiler",
    "memory_breakdown",
    "steps_per_print",
    "tensorboard",
    "wall_clock_breakdown",
    "wandb",
    "zero_optimization.overlap_comm",
    "zero_optimization.stage3_max_live_parameters",
    "zero_optimization.stage3_max_reuse_distance",
    "zero_optimization.stage3_prefetch_bucket_size",
)


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

    @property
    def is_of_optimizer(self) -> bool:
        """Whether it changes which optimizer holds the state, which cannot be converted."""
        return self.name in (OFFLOAD, STATES, PRECISION)

    @property
    def is_of_adapter(self) -> bool:
        """Whether it changes what the tensors of an adapter mean, which cannot be converted."""
        return self.name.startswith("adapter.") and self.name not in ADAPTER_HABITS

    def __str__(self) -> str:
        return f"{self.name} ({self.then} -> {self.now})"


def changes_since(
    manifest: CheckpointManifest,
    *,
    num_ranks: int,
    recipe: Recipe,
    data_fingerprint: str,
    basis: RunBasis = UNKNOWN_BASIS,
) -> tuple[Change, ...]:
    """All changes that decide the steps or the layout. Keys that only the checkpoint's recipe has are not compared."""
    then = {NUM_GPUS: manifest.num_ranks, "prepared data": manifest.data_fingerprint[:12]}
    now = {NUM_GPUS: num_ranks, "prepared data": data_fingerprint[:12]}
    if manifest.data_rows and basis.rows_digest and manifest.data_fingerprint == data_fingerprint:
        then["rows of the prepared data"] = manifest.data_rows[:12]
        now["rows of the prepared data"] = basis.rows_digest[:12]
    then |= decisive_settings(manifest.recipe) | {
        "train.plan": plan_of(manifest.recipe),
        STATES: states_of(manifest.recipe),
    }
    now |= decisive_settings(recipe.model_dump(mode="json", by_alias=True))
    if basis.precision and (stored := _stored_precision(manifest)):
        then[PRECISION], now[PRECISION] = stored, basis.precision
    return _changes(then, now) + config_changes(manifest.base_config, basis.config)


def states_of(recipe: Mapping[str, Any]) -> str:
    """`optimizer.states` of a checkpoint's recipe. Recipes of runs that were begun before this key do not have it."""
    states: str = recipe["optimizer"].get("states", "float32")
    return states


def _stored_precision(manifest: CheckpointManifest) -> str:
    """`bfloat16` or `float32`, by the names that DeepSpeed gives the optimizer's files; empty where there are none."""
    names = [PurePosixPath(name).name for name in manifest.files if name.endswith("optim_states.pt")]
    if not names:
        return ""
    return "bfloat16" if names[0].startswith("bf16_") else "float32"


def config_changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[Change, ...]:
    """The entries of a base's configuration that decide the steps and differ; none where one of both is empty."""
    if not then or not now:
        return ()
    before, after = (
        {f"base config: {name}": value for name, value in config_entries(values).items()} for values in (then, now)
    )
    return _changes(before, after)


def _changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[Change, ...]:
    pairs = ((name, then.get(name), now.get(name)) for name in {**now, **then})
    return tuple(Change(name=name, then=before, now=after) for name, before, after in pairs if before != after)


def decisive_settings(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a recipe that decide the steps, by dotted name; None for a key that the recipe does not have.

    The keys of `data` are left out: the fingerprint of the dataset that was prepared from them is compared instead. Of
    `deepspeed.config`, the keys that change no number are left out (IDLE_KEYS).
    """
    chosen = chosen_values(Recipe, recipe, lambda flags: flags.decides_steps)
    del chosen["data"]
    settings: dict[str, Any] = {}
    for key, value in chosen.items():
        is_whole = is_section(Recipe.model_fields[key].annotation)
        if is_whole or inner_section(Recipe.model_fields[key].annotation) is not None:  # one that may be left out
            settings |= {f"{key}.{name}": inner for name, inner in (value or {}).items()}
        else:
            settings[key] = value
    raw = settings.pop(_RAW) or {}
    return settings | {f"{_RAW}.{name}": value for name, value in flat_values(raw) if not _is_idle(name)}


def _is_idle(name: str) -> bool:
    return any(name == key or name.startswith(f"{key}.") for key in IDLE_KEYS)


def other_versions(manifest: CheckpointManifest, basis: RunBasis) -> str | None:
    """The software and hardware that is not the checkpoint's, for a message; None where all of it is the same."""
    shared = [name for name in basis.versions if name in manifest.versions]
    changed = [name for name in shared if manifest.versions[name] != basis.versions[name]]
    if not changed:
        return None
    listed_changes = ", ".join(f"{name} {manifest.versions[name]} -> {basis.versions[name]}" for name in changed)
    return f"warning: not what the checkpoint was computed with, so the last digits may differ: {listed_changes}"


def listed(changes: Iterable[Change]) -> str:
    """Changes for a message: `seed (1 -> 2), train.epochs (3 -> 4)`."""
    return ", ".join(map(str, changes))
