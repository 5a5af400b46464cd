"""A training from the recipe to the last step.

The hosts agree on what they train, the model is built, its state is loaded; then `loop.run_steps` takes the steps.
"""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from data_pipeline.prepared.dataset import Manifest
from ochat_train.checkpoint.basis import RunBasis
from ochat_train.checkpoint.earlier_plan import plan_to_take, with_plan
from ochat_train.checkpoint.resume import ResumeDecision, decide, read_earlier_run, resume_state, set_aside
from ochat_train.checkpoint.state import Progress
from ochat_train.distributed.agreement import facts_of, on_every_rank, require_agreement, require_shared_folder
from ochat_train.distributed.engine import TrainingEngine
from ochat_train.distributed.ranks import Ranks, on_main_rank, start_ranks
from ochat_train.distributed.stop_request import StopRequest
from ochat_train.distributed.watchdog import REMEDY, Watchdog, is_lost_contact
from ochat_train.evaluation.validation import Validator
from ochat_train.hub.background_push import BackgroundPush
from ochat_train.hub.retry import RetryPolicy
from ochat_train.hub.rights import check_recipe_rights
from ochat_train.planning.memory import MemoryPlan
from ochat_train.planning.memory_text import out_of_memory
from ochat_train.recipe.preparation import check_prepared
from ochat_train.recipe.recipe import Recipe
from ochat_train.runs.folder import require_run_folder, write_run_folder
from ochat_train.runs.lock import RunLock, real_folder
from ochat_train.system.exits import LostRanksError
from ochat_train.system.messages import print_message, print_notice
from ochat_train.system.requirements import check_requirements
from ochat_train.tracking.delivery import Trackers
from ochat_train.tracking.facts import run_facts
from ochat_train.training.adapter import ReachedTensors
from ochat_train.training.batches import run_steps_of_rank
from ochat_train.training.benchmarks import BenchmarkQuestions, Benchmarks, agreed_benchmarks
from ochat_train.training.data_check import DataCheck, start_data_check
from ochat_train.training.disk_room import require_room
from ochat_train.training.engine import start_engine
from ochat_train.training.hooks import Hooks
from ochat_train.training.loop import Run, run_steps
from ochat_train.training.meter import Meter
from ochat_train.training.outputs import open_outputs
from ochat_train.training.prefetch import StepPrefetcher
from ochat_train.training.prepared_training import Training, basis_of, prepared_training, print_start, with_earlier_rate

_PREFETCHED = 8  # micro-batches made ahead of the GPU
_WATCHDOG_FIRST_SECONDS = 60.0  # the watchdog speaks before the collective gives up: it knows which rank is missing
_DEFAULT_HOOKS = Hooks()


def train(recipe: Recipe, *, resume: str, accept_changes: bool = False, hooks: Hooks = _DEFAULT_HOOKS) -> None:
    """Train a recipe on a prepared dataset, on all ranks of the launcher.

    resume: `auto`, `never` or the folder of a checkpoint. accept_changes: resume from a checkpoint of other data or
    settings. Recipe, prepared data and library versions must be the same on all hosts, and the run folder must be one
    that all of them see. Raises StoppedBySignalError after a signal and its checkpoint, LostRanksError where another
    rank is gone, NotPushedError on rank 0 where the model is trained but could not be pushed to the Hub.
    """
    ranks = start_ranks(timeout_seconds=recipe.train.hang_timeout_seconds + _WATCHDOG_FIRST_SECONDS)
    push, stop_request, run_lock = None, StopRequest(), RunLock(Path(recipe.output_dir))
    try:
        manifest = _agreed_manifest(recipe, ranks)
        benchmarks = agreed_benchmarks(recipe, manifest, ranks)  # a wrong file costs a second now, not a training
        data_check = start_data_check(recipe, manifest, ranks)
        on_main_rank(ranks, lambda: _check_and_lock(recipe, hooks, run_lock))
        require_shared_folder(ranks, Path(recipe.output_dir), sight_seconds=hooks.sight_seconds)
        recipe = with_plan(recipe, on_main_rank(ranks, partial(plan_to_take, recipe, resume)))
        if recipe.train.push_to_hub is not None:
            on_main_rank(ranks, lambda: check_recipe_rights(recipe, policy=RetryPolicy()))  # before hours are spent
            push = BackgroundPush(recipe) if ranks.is_main else None
        start = _Start(
            resume=resume,
            accept_changes=accept_changes,
            data_check=data_check,
            push=push,
            stop_request=stop_request,
            run_lock=run_lock,
            hooks=hooks,
            benchmarks=benchmarks,
        )
        _train(recipe, manifest, ranks, start)
        on_main_rank(ranks, lambda: _require_whole_folder(recipe, run_lock))
        if ranks.is_main:
            print_notice(next_steps(Path(recipe.output_dir)))
        hooks.leave_ranks()
        if push is not None:  # alone: the other ranks need not wait for the Hub
            push.finish(stop_request)
    finally:
        if push is not None:
            push.close()
        stop_request.close()
        run_lock.close()


@dataclass(frozen=True, kw_only=True)
class _Start:
    """How a training was asked for, and what lives longer than its steps."""

    resume: str
    accept_changes: bool
    data_check: DataCheck
    push: BackgroundPush | None
    stop_request: StopRequest
    run_lock: RunLock
    hooks: Hooks
    benchmarks: BenchmarkQuestions | None


@dataclass(frozen=True, kw_only=True)
class _Loaded:
    """The engine with the state of the checkpoint, or with the base's weights, and how far the run is.

    reached: what an adapter's first step has to reach, None without one.
    """

    engine: TrainingEngine
    reached: ReachedTensors | None
    progress: Progress


def _agreed_manifest(recipe: Recipe, ranks: Ranks) -> Manifest:
    """The manifest of the prepared dataset, which is the same on all hosts, as are recipe and library versions."""
    on_every_rank(ranks, check_requirements)
    on_every_rank(ranks, recipe.deepspeed.check_config)
    manifest = on_every_rank(ranks, lambda: check_prepared(recipe, with_sources=False))
    require_agreement(ranks, facts_of(recipe, manifest))
    return manifest


def _check_and_lock(recipe: Recipe, hooks: Hooks, run_lock: RunLock) -> None:
    """What one rank checks for all, and the lock of the run folder."""
    hooks.trackers(recipe.tracking)
    run_lock.acquire()


def _resume_decision(
    recipe: Recipe, manifest: Manifest, basis: RunBasis, ranks: Ranks, start: _Start
) -> ResumeDecision:
    """How the run starts, the same on all ranks. Rank 0 decides, and moves away what the decision names."""

    def decide_and_set_aside() -> ResumeDecision:
        decision = decide(
            read_earlier_run(real_folder(Path(recipe.output_dir)), start.resume),
            start.resume,
            num_ranks=ranks.num_ranks,
            recipe=recipe,
            data_fingerprint=manifest.fingerprint,
            accept_changes=start.accept_changes,
            basis=basis,
        )
        set_aside(decision, start.run_lock)
        return decision

    return on_main_rank(ranks, decide_and_set_aside)


def _train(recipe: Recipe, manifest: Manifest, ranks: Ranks, start: _Start) -> None:
    """Set up the model, load its state, take the steps that are left."""
    training = prepared_training(recipe, manifest, ranks)
    data = start.data_check.finish()  # before anything is written or moved
    basis = basis_of(training, ranks, rows_digest=data.rows_digest)
    on_main_rank(ranks, lambda: _require_room(training, ranks, start.resume))
    decision = _resume_decision(training.recipe, manifest, basis, ranks, start)
    training, basis = with_earlier_rate(training, basis, decision)
    on_main_rank(ranks, lambda: _write_run_folder(training, start.run_lock))
    loaded = _loaded_engine(training, decision, ranks, group_elements=start.hooks.group_elements)
    if ranks.is_main:
        print_start(training, ranks, decision)
        if loaded.progress.step == training.plan.num_steps:
            print_message(
                f"this run is finished: all {loaded.progress.step:,} steps are done, and none is left to train"
            )
    validator = Validator(training.recipe, manifest, num_steps=training.plan.num_steps)
    start.stop_request.listen()  # from here on a step can be finished and a checkpoint written
    _take_steps(training, basis, loaded, validator, ranks, start)


def _require_room(training: Training, ranks: Ranks, resume: str) -> None:
    require_room(
        training.recipe,
        training.model.causal_lm,
        num_steps=training.plan.num_steps,
        zero_stage=training.memory.zero_stage,
        num_ranks=ranks.num_ranks,
        resume=resume,
    )


def _take_steps(
    training: Training,
    basis: RunBasis,
    loaded: _Loaded,
    validator: Validator,
    ranks: Ranks,
    start: _Start,
) -> None:
    """Start the threads and open the files of a run, take its steps, and close everything whatever ends them."""
    recipe, num_steps, hooks = training.recipe, training.plan.num_steps, start.hooks
    first_step = loaded.progress.step
    with contextlib.ExitStack() as stack:
        watchdog = stack.enter_context(contextlib.closing(_watchdog(recipe, ranks, start.stop_request)))
        steps = stack.enter_context(contextlib.closing(_steps(training, ranks, first_step=first_step)))
        facts = run_facts(recipe, training.manifest, ranks, first_step=first_step)
        chosen = hooks.trackers(recipe.tracking) if ranks.is_main else []
        trackers = Trackers(chosen, facts, report=print_message)
        # called last, and does nothing after the end of a run
        stack.callback(trackers.close, done=False, most_seconds=hooks.stopped_close_seconds)
        stack.enter_context(_explained_errors(training.memory, watchdog))
        opened = open_outputs(
            Path(recipe.output_dir),
            trackers,
            ranks,
            first_step=first_step,
            num_steps=num_steps,
            check_folder=start.run_lock.require_held,
            facts=facts,
        )
        with opened as (writer, line):
            run = Run(
                recipe=recipe,
                manifest=training.manifest,
                basis=basis,
                split=training.split,
                num_steps=num_steps,
                steps_per_epoch=training.plan.steps_per_epoch,
                peak=training.peak.value,
                ranks=ranks,
                engine=loaded.engine,
                steps=steps,
                meter=Meter(training.work, ranks.device, num_ranks=ranks.num_ranks),
                validator=validator,
                writer=writer,
                line=line,
                push=start.push,
                watchdog=watchdog,
                stop_request=start.stop_request,
                before_step=hooks.before_step,
                reached=loaded.reached,
                benchmarks=_benchmarks(training, validator, start.benchmarks),
            )
            run_steps(run, loaded.progress)
        watchdog.progress(num_steps, "closing trackers")
        trackers.close(done=True, most_seconds=min(hooks.close_seconds, recipe.train.hang_timeout_seconds / 2))


def _benchmarks(training: Training, validator: Validator, questions: BenchmarkQuestions | None) -> Benchmarks | None:
    """The benchmarks of a run, asked when it validates; None without any."""
    if questions is None:
        return None
    return Benchmarks(
        training.recipe, questions, every_steps=validator.schedule.every_steps, num_steps=training.plan.num_steps
    )


def _loaded_engine(training: Training, decision: ResumeDecision, ranks: Ranks, *, group_elements: int) -> _Loaded:
    recipe = training.recipe
    reached = ReachedTensors(training.model) if training.adapter is not None else None
    engine = start_engine(training.model, recipe, ranks, load_universal=decision.reshard, group_elements=group_elements)
    torch.manual_seed(recipe.seed + ranks.rank)  # dropout differs between ranks
    progress = resume_state(decision, engine, ranks, seed=recipe.seed)
    return _Loaded(engine=engine, reached=reached, progress=progress)


def next_steps(output_dir: Path) -> str:
    """The commands that usually follow, ready to be copied into a shell."""
    run, out = (shlex.quote(str(path)) for path in (output_dir, output_dir / "export"))
    return f"done; next:\n  ochat report {run}\n  ochat export {run} --out {out}"


def _write_run_folder(training: Training, run_lock: RunLock) -> None:
    """What rank 0 writes before the first step, into the folder that it has locked."""
    run_lock.require_held()
    write_run_folder(Path(training.recipe.output_dir), training.recipe, training.model.causal_lm)


def _require_whole_folder(recipe: Recipe, run_lock: RunLock) -> None:
    run_lock.require_held()
    require_run_folder(Path(recipe.output_dir))


def _watchdog(recipe: Recipe, ranks: Ranks, stop_request: StopRequest) -> Watchdog:
    return Watchdog(
        Path(recipe.output_dir),
        ranks,
        timeout_seconds=recipe.train.hang_timeout_seconds,
        on_beat=stop_request.notice_ended_launcher,
    )


def _steps(training: Training, ranks: Ranks, *, first_step: int) -> StepPrefetcher:
    recipe = training.recipe
    steps = run_steps_of_rank(
        training.split,
        training.plan,
        first_step=first_step,
        rank=ranks.rank,
        num_ranks=ranks.num_ranks,
        packs_per_micro_batch=recipe.train.packs_per_micro_batch or 1,
        loss_denominator=recipe.train.loss_denominator,
        num_classes=len(training.manifest.classes),
        pin=ranks.device.type == "cuda",
    )
    return StepPrefetcher(steps, depth=_PREFETCHED)


@contextlib.contextmanager
def _explained_errors(memory: MemoryPlan, watchdog: Watchdog) -> Iterator[None]:
    """Errors of torch as errors that say what a user can do."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise out_of_memory(memory, error) from error
    except RuntimeError as error:
        if not is_lost_contact(error):
            raise
        watchdog.wait_for_silence()
        raise LostRanksError(
            f"lost contact with another rank: {watchdog.describe()}; {REMEDY} ({str(error).splitlines()[0][:200]})"
        ) from error
