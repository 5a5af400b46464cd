"""Where a run goes on: the checkpoint that fits, or a clear refusal. Rank 0 asks, for all ranks."""

from __future__ import annotations

import itertools
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from data_pipeline.errors import UserError
from ochat_train.checkpoint.reshard import CONVERTIBLE_STAGES, resharded
from ochat_train.checkpoint.state import (
    CheckpointManifest,
    Progress,
    checkpoints_dir,
    list_checkpoints,
    load_engine_state,
    load_random_states,
    refuse_unsafe_pickles,
    verify,
)
from ochat_train.distributed.ranks import Ranks
from ochat_train.recipe.sections import Recipe
from ochat_train.system import durable

_HARMLESS = (
    "train.log_every_steps",
    "train.hang_timeout_seconds",
    "train.max_nonfinite_steps",
    "train.push_to_hub",
    "train.hub_private",
    "train.packs_per_micro_batch",
    "model.activation_checkpointing",
    "model.compile",  # decide rounding, as GPUs do
)
_RESHARDED = ("number of GPUs", "deepspeed.zero_stage")  # how the state is cut into files


@dataclass(frozen=True, kw_only=True)
class ResumePoint:
    """Where to go on. reshard: the state was cut for another number of GPUs or another ZeRO stage."""

    folder: Path
    reshard: bool


def resume_state(point: ResumePoint, engine: Any, ranks: Ranks, *, seed: int) -> Progress:
    """Load the state to go on from; returns how far it is. The engine of a resharded state is started for that.

    A resharded run takes the same steps on the same conversations; random numbers (dropout) begin anew.
    """
    progress = CheckpointManifest.load(point.folder).progress
    if point.reshard:
        with resharded(point.folder, ranks) as folder:
            load_engine_state(engine, folder)
        torch.manual_seed(seed + ranks.rank + 1_000_003 * progress.step)
    else:
        refuse_unsafe_pickles(point.folder)
        load_engine_state(engine, point.folder)
        load_random_states(point.folder, rank=ranks.rank, device=ranks.device)
    return progress


def choose_checkpoint(
    output_dir: Path, resume: str, *, num_ranks: int, recipe: Recipe, data_fingerprint: str, accept_changes: bool
) -> ResumePoint | None:
    """The checkpoint to go on from: the newest one that verifies (`auto`), none (`never`), or the folder named.

    What an earlier run left behind beyond that point is moved aside, never deleted and never mixed up with this run.
    accept_changes: go on although data or settings are others than the checkpoint's.
    Raises UserError where the checkpoint does not fit this run.
    """
    chosen = _find_checkpoint(output_dir, resume)
    if chosen is None:
        if resume == "never" and any(path.name != ".lock" for path in output_dir.iterdir()):
            _set_run_aside(output_dir)
        return None
    manifest = CheckpointManifest.load(chosen)
    changed = differences(manifest, num_ranks=num_ranks, recipe=recipe, data_fingerprint=data_fingerprint)
    reshard = [change for change in changed if change.startswith(_RESHARDED)]
    _check_fits(chosen, [change for change in changed if change not in reshard], accept_changes=accept_changes)
    if reshard:
        stages = (manifest.recipe["deepspeed"]["zero_stage"], recipe.deepspeed.zero_stage)
        if stages not in CONVERTIBLE_STAGES:
            raise UserError(
                chosen,
                f"was written with another {', '.join(reshard)}",
                "a state can be converted between ZeRO 1 and 2 and between numbers of GPUs in ZeRO 1 to 3 only: go "
                "back to that, or start anew with `--resume never`",
            )
        print(f"goes on with another {', '.join(reshard)}: the checkpoint is converted first", file=sys.stderr)
    _set_later_checkpoints_aside(output_dir, manifest.step)
    return ResumePoint(folder=chosen, reshard=bool(reshard))


def _set_run_aside(output_dir: Path) -> None:
    number = next(n for n in itertools.count(1) if not _previous(output_dir, n).exists())
    durable.rename(output_dir, _previous(output_dir, number))
    print(f"the earlier run is kept in {_previous(output_dir, number)}", file=sys.stderr)


def _previous(output_dir: Path, number: int) -> Path:
    return output_dir.with_name(f"{output_dir.name}.previous-{number}")


def _set_later_checkpoints_aside(output_dir: Path, step: int) -> None:
    for folder in list_checkpoints(output_dir):
        if int(folder.name.removeprefix("step-")) > step:
            aside = next(
                p for n in itertools.count(1) if not (p := folder.with_name(f"aside-{n}-{folder.name}")).exists()
            )
            durable.rename(folder, aside)
            print(f"{folder.name} is not gone on from; it is kept as {aside}", file=sys.stderr)


def _find_checkpoint(output_dir: Path, resume: str) -> Path | None:
    if resume == "never":
        return None
    if resume != "auto":
        problem = verify(Path(resume))
        if problem is not None:
            raise UserError(f"--resume {resume}", problem)
        return Path(resume)
    broken = []
    for folder in reversed(list_checkpoints(output_dir)):
        problem = verify(folder)
        if problem is None:
            return folder
        print(f"{folder.name} is not intact: {problem}", file=sys.stderr)
        broken.append(f"{folder.name}: {problem}")
    if broken:
        problems = "; ".join(broken)
        raise UserError(
            f"{checkpoints_dir(output_dir)}", f"no checkpoint is intact ({problems})", "`--resume never` starts anew"
        )
    return None


def _check_fits(folder: Path, changed: list[str], *, accept_changes: bool) -> None:
    if changed and not accept_changes:
        raise UserError(
            folder,
            f"was written with another {', '.join(changed)}",
            "go back to that, use another output_dir, start anew with `--resume never`, or go on with the change "
            "(`--accept-changes`)",
        )
    if changed:
        print(f"goes on with another {', '.join(changed)}, as asked", file=sys.stderr)


def differences(manifest: CheckpointManifest, *, num_ranks: int, recipe: Recipe, data_fingerprint: str) -> list[str]:
    """What this run would do differently from the one that wrote a checkpoint: `name (then x, now y)`."""
    then = {"number of GPUs": manifest.num_ranks, "prepared data": manifest.data_fingerprint[:12]}
    now = {"number of GPUs": num_ranks, "prepared data": data_fingerprint[:12]}
    then |= decisive_settings(manifest.recipe)
    now |= decisive_settings(recipe.model_dump(mode="json", by_alias=True))
    return [f"{name} (then {then.get(name)}, now {now[name]})" for name in now if then.get(name) != now[name]]


def decisive_settings(recipe: dict[str, Any]) -> dict[str, Any]:
    """The values of a recipe that decide the steps of a run, by dotted name."""
    names = {
        f"{section}.{key}": value
        for section in ("model", "train", "optimizer")
        for key, value in recipe[section].items()
    }
    for harmless in _HARMLESS:
        names.pop(harmless, None)
    return {"seed": recipe["seed"], "deepspeed.zero_stage": recipe["deepspeed"]["zero_stage"], **names}
