"""Where a run starts: from the base model, or from a checkpoint.

A start has three parts. `read_earlier_run` looks at the disk, `decide` chooses without touching anything, and
`set_aside` moves away what an earlier attempt left behind: it is never deleted, and never mixed up with this run.

What a resumed run takes over, and from where:

    from the checkpoint
        weights, AdamW's moments, float32 master weights     state/          `load_engine_state`
        random number generators of each rank, CPU and GPU   rng-*           `load_random_states`
        steps done, steps that were not finite (in all, and in a row), the last gradient norms (for spikes)
                                                             MANIFEST.json   `Progress`
    computed again from the recipe, the prepared data and the number of steps done
        the packs of each step, the learning rate, when to validate and to save
    from the run folder
        metrics, validation, samples: the lines up to the checkpoint's step are kept     training/outputs.py
        TensorBoard: later steps are hidden; Weights & Biases: the same run continues    tracking/
        anomalies.jsonl keeps all lines; hub/ knows what has been pushed
    begun again
        the class sums that are printed at the end: of the steps since the resume, if it was in the last epoch

Not used: the weights of the base, which the checkpoint's replace. If its files have changed, the run says so. An
adapter is different: its checkpoints do not hold the base, and a run whose base has other weights is refused.

Not taken over: the order in which GPU kernels add (so GPU runs repeat within rounding), and, on another number of GPUs
or another ZeRO stage, random numbers (dropout is redrawn; steps hold the same conversations).
"""

from __future__ import annotations

import itertools
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from data_pipeline import nesting
from data_pipeline.errors import UserError
from ochat_train.checkpoint.basis import UNKNOWN_BASIS, RunBasis
from ochat_train.checkpoint.changes import Change, changes_since, listed, other_versions
from ochat_train.checkpoint.reshard import CONVERTIBLE_STAGES, place_step_counts, resharded
from ochat_train.checkpoint.state import (
    STATE,
    CheckpointManifest,
    Progress,
    checkpoints_dir,
    list_checkpoints,
    load_engine_state,
    load_random_states,
    refuse_unsafe_pickles,
    step_of,
    verify,
)
from ochat_train.distributed.ranks import Ranks
from ochat_train.optimizer.shards import has_small_states, load_universal
from ochat_train.recipe.recipe import Recipe
from ochat_train.runs.folder import MODEL_CONFIG_FOLDER
from ochat_train.runs.lock import LOCK_FILE, RunLock
from ochat_train.system import durable
from ochat_train.system.messages import print_message

_BACK = "change it back, or start over with `--resume never`"


@dataclass(frozen=True, kw_only=True)
class EarlierRun:
    """What is on the disk when a run starts."""

    output_dir: Path
    is_there: bool  # whether anything was written into output_dir
    neighbours: frozenset[str]  # names beside output_dir; none where the run stays where it is
    checkpoints: tuple[Path, ...]  # the complete ones, oldest first
    checkpoint_names: frozenset[str]  # everything in their folder
    damaged: tuple[tuple[str, str], ...] = ()  # (name, problem) of those that failed verification
    intact: tuple[Path, CheckpointManifest] | None = None  # the one to resume from


@dataclass(frozen=True, kw_only=True)
class ResumeDecision:
    """How a run starts."""

    checkpoint: Path | None  # where to resume from; None: from the base model
    reshard: bool = False  # it was written for another number of GPUs or another ZeRO stage, and is converted
    run_moves_to: Path | None = None  # new name of the whole earlier run
    checkpoint_moves: tuple[tuple[Path, Path], ...] = ()  # (from, to) of single checkpoints
    messages: tuple[str, ...] = ()  # lines for the user
    learning_rate_rule: int | None = None  # of the run that is resumed, None of one that begins


def read_earlier_run(output_dir: Path, resume: str) -> EarlierRun:
    """Look for an earlier run and the checkpoint to resume from. Reads all bytes of the checkpoints that it verifies.

    resume: `auto` (the newest intact checkpoint), `never`, or the folder of a checkpoint.
    """
    checkpoints, damaged, intact = list_checkpoints(output_dir), [], None
    candidates = {"auto": checkpoints[::-1], "never": []}.get(resume, [Path(resume)])
    for folder in candidates:
        problem = verify(folder)
        if problem is None:
            intact = folder, _with_base_config(folder, CheckpointManifest.load(folder))
            break
        damaged.append((folder.name, problem))
        if resume == "auto":  # said at once: hashing the next one takes minutes
            print_message(f"{folder.name} is not intact: {problem}")
    is_there = bool(_names(output_dir) - {LOCK_FILE})
    # only for a new name: the folder above may belong to others, and not let this user list it
    neighbours = _names(output_dir.parent) if resume == "never" and is_there else frozenset()
    return EarlierRun(
        output_dir=output_dir,
        is_there=is_there,
        neighbours=neighbours,
        checkpoints=tuple(checkpoints),
        checkpoint_names=_names(checkpoints_dir(output_dir)),
        damaged=tuple(damaged),
        intact=intact,
    )


def _with_base_config(folder: Path, manifest: CheckpointManifest) -> CheckpointManifest:
    """A manifest that holds the base's configuration: its own, or that of the run folder it is in, where earlier
    versions wrote it. Without it, if there is none.
    """
    path = folder.resolve().parent.parent / MODEL_CONFIG_FOLDER / "config.json"
    if manifest.base_config or not path.is_file():
        return manifest
    try:
        return replace(manifest, base_config=nesting.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise UserError(path, f"cannot be read ({error})", "restore it, or start over with `--resume never`") from None


def decide(
    earlier: EarlierRun,
    resume: str,
    *,
    num_ranks: int,
    recipe: Recipe,
    data_fingerprint: str,
    accept_changes: bool,
    basis: RunBasis = UNKNOWN_BASIS,
) -> ResumeDecision:
    """How to start. accept_changes: resume although data or settings have changed since the checkpoint. basis: of this
    run.

    Raises UserError if no checkpoint is intact, or if the one to resume from does not fit this run.
    """
    if resume == "never":
        return _start_over(earlier)
    if earlier.intact is None:
        if not earlier.damaged:
            return ResumeDecision(checkpoint=None)
        if resume != "auto":
            [(_, problem)] = earlier.damaged
            raise UserError(f"--resume {resume}", problem, "choose another checkpoint")
        problems = "; ".join(f"{name}: {problem}" for name, problem in earlier.damaged)
        raise UserError(
            checkpoints_dir(earlier.output_dir),
            f"no checkpoint is intact ({problems})",
            "`--resume never` starts over",
        )
    folder, manifest = earlier.intact
    changes = changes_since(
        manifest, num_ranks=num_ranks, recipe=recipe, data_fingerprint=data_fingerprint, basis=basis
    )
    _refuse_other_optimizer(folder, [change for change in changes if change.is_of_optimizer])
    _refuse_other_adapter(folder, [change for change in changes if change.is_of_adapter], manifest, basis)
    messages = _check_changes(folder, [change for change in changes if not change.is_of_layout], accept_changes)
    messages += _differences(manifest, basis)
    layout = [change for change in changes if change.is_of_layout]
    if layout:
        stages = (manifest.recipe["deepspeed"]["zero_stage"], recipe.deepspeed.zero_stage)
        messages += _check_layout(folder, layout, stages)
    moves = _later_checkpoints(earlier, step=manifest.step)
    messages += [f"{old.name} is later than this checkpoint; it is moved to {new}" for old, new in moves]
    return ResumeDecision(
        checkpoint=folder,
        reshard=bool(layout),
        checkpoint_moves=tuple(moves),
        messages=tuple(messages),
        learning_rate_rule=manifest.learning_rate_rule,
    )


def set_aside(decision: ResumeDecision, lock: RunLock) -> None:
    """Move away what the decision names, and say so. lock: of this run's folder, held before and afterwards."""
    if decision.run_moves_to is not None:
        lock.move_run_to(decision.run_moves_to)
    for old, new in decision.checkpoint_moves:
        durable.rename(old, new)
    for message in decision.messages:
        print_message(message)


def resume_state(decision: ResumeDecision, engine: Any, ranks: Ranks, *, seed: int) -> Progress:
    """Load the state that was decided on into the engine, which was started for it; returns how far the run is."""
    folder = decision.checkpoint
    if folder is None:
        return Progress()
    manifest = CheckpointManifest.load(folder)
    progress = manifest.progress
    if decision.reshard:
        with resharded(folder, ranks) as converted:
            load_engine_state(engine, converted)
            if has_small_states(engine):
                load_universal(engine, converted / STATE / "zero")
        place_step_counts(engine.optimizer.optimizer)
        torch.manual_seed(seed + ranks.rank + 1_000_003 * progress.step)
    else:
        refuse_unsafe_pickles(folder)
        load_engine_state(engine, folder, only_trained=manifest.adapter is not None)
        load_random_states(folder, rank=ranks.rank, device=ranks.device)
    return progress


def _names(folder: Path) -> frozenset[str]:
    return frozenset(path.name for path in folder.iterdir()) if folder.is_dir() else frozenset()


def _start_over(earlier: EarlierRun) -> ResumeDecision:
    if not earlier.is_there:
        return ResumeDecision(checkpoint=None)
    target = _free_path(earlier.output_dir.parent, f"{earlier.output_dir.name}.previous-{{}}", earlier.neighbours)
    return ResumeDecision(checkpoint=None, run_moves_to=target, messages=(f"the earlier run is moved to {target}",))


def _later_checkpoints(earlier: EarlierRun, *, step: int) -> list[tuple[Path, Path]]:
    """(from, to) for the checkpoints of steps after `step`."""
    return [
        (folder, _free_path(folder.parent, f"aside-{{}}-{folder.name}", earlier.checkpoint_names))
        for folder in earlier.checkpoints
        if step_of(folder) > step
    ]


def _free_path(parent: Path, pattern: str, taken: Collection[str]) -> Path:
    """The first numbered name that is not taken."""
    return parent / next(name for n in itertools.count(1) if (name := pattern.format(n)) not in taken)


def _changed(folder: Path, what: str, remedy: str = _BACK) -> UserError:
    return UserError(folder, f"changed since this checkpoint was written: {what}", remedy)


def _check_changes(folder: Path, changes: list[Change], accept_changes: bool) -> list[str]:
    """What to say of accepted changes. Raises UserError if they are not accepted."""
    if not changes:
        return []
    if not accept_changes:
        back = "change it back, use another output_dir, start over with `--resume never`"
        raise _changed(folder, listed(changes), f"{back}, or accept the change with `--accept-changes`")
    return [f"resuming with accepted changes: {listed(changes)}"]


def _refuse_other_optimizer(folder: Path, changes: list[Change]) -> None:
    """Raise UserError for optimizer states that another optimizer has written, or for another place."""
    if changes:
        raise _changed(folder, f"{listed(changes)}; its optimizer states cannot be converted")


def _refuse_other_adapter(folder: Path, changes: list[Change], manifest: CheckpointManifest, basis: RunBasis) -> None:
    """Raise UserError where the checkpoint's tensors do not mean the same in this run: another kind of adapter, other
    places for it, or another base, which is not in the checkpoint.
    """
    then, now = manifest.adapter, basis.adapter
    problems = [listed(changes)] if changes else []
    if then is not None and now is not None and not changes:
        if then.base_sha256 != now.base_sha256:
            problems.append(
                f"the weights of the base (sha256 {then.base_sha256[:12]} -> {now.base_sha256[:12]}), which the "
                "adapter was trained on and which no checkpoint holds"
            )
        if list(then.modules) != list(now.modules):
            problems.append(f"the modules that have an adapter ({len(then.modules)} -> {len(now.modules)})")
        if list(then.token_ids) != list(now.token_ids):
            problems.append(f"the trained rows of new tokens ({list(then.token_ids)} -> {list(now.token_ids)})")
    if problems:
        raise _changed(folder, "; ".join(problems))


def _differences(manifest: CheckpointManifest, basis: RunBasis) -> list[str]:
    """What to say of differences that a run may have."""
    messages = [text] if (text := other_versions(manifest, basis)) is not None else []
    if basis.config and not manifest.base_config:
        messages.append(
            "warning: neither the checkpoint nor its run folder holds the base's config; it is not compared"
        )
    are_known = manifest.adapter is None and manifest.base_weights and basis.base_weights
    if are_known and manifest.base_weights != basis.base_weights:
        messages.append(
            "the files of the base's weights have another size or date than at the checkpoint; they are not used: "
            "weights come from the checkpoint"
        )
    return messages


def _check_layout(folder: Path, changes: list[Change], stages: tuple[Any, Any]) -> list[str]:
    """What to say of a conversion. Raises UserError if there is none between these ZeRO stages."""
    if stages not in CONVERTIBLE_STAGES:
        can = "only ZeRO 1 and 2 can be converted into each other, and ZeRO 1, 2 and 3 to another number of GPUs"
        raise _changed(folder, listed(changes), f"{_BACK}; {can}")
    return [f"the checkpoint is converted first: {listed(changes)}"]
