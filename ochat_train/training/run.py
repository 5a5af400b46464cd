"""The training loop. Everything it calls is prepared before the first step; the step itself is `train_step`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

from data_pipeline.plan.plan import TrainingPlan
from data_pipeline.prepared.dataset import Manifest, PreparedSplit
from ochat_train.checkpoint.resume import decide, read_earlier_run, resume_state, set_aside
from ochat_train.distributed.agreement import facts_of, on_every_rank, require_agreement, require_shared_folder
from ochat_train.distributed.ranks import Ranks, on_main_rank, start_ranks, stop_ranks
from ochat_train.distributed.stop_request import StopRequest
from ochat_train.distributed.watchdog import REMEDY, Watchdog, is_lost_contact
from ochat_train.evaluation.validation import Validator
from ochat_train.hub.background_push import BackgroundPush
from ochat_train.hub.retry import RetryPolicy
from ochat_train.hub.rights import check_recipe_rights
from ochat_train.model.build import build_model, is_compiled, set_up_layers
from ochat_train.planning.memory import (
    MemoryPlan,
    fastest_plan,
    free_gpu_bytes,
    model_shape,
    resolve,
)
from ochat_train.planning.memory_text import memory_text, out_of_memory_text, too_little_memory
from ochat_train.planning.steps import peak_learning_rate, training_plan
from ochat_train.planning.work import work_of
from ochat_train.recipe.preparation import check_prepared
from ochat_train.recipe.sections import Recipe
from ochat_train.runs.folder import write_run_folder
from ochat_train.runs.lock import RunLock
from ochat_train.system.exits import LostRanksError, OneRankError
from ochat_train.system.say import say
from ochat_train.tracking.choice import chosen_trackers
from ochat_train.tracking.delivery import CLOSE_SECONDS, STOPPED_CLOSE_SECONDS, Trackers
from ochat_train.tracking.facts import run_facts
from ochat_train.training.batches import run_micro_batches
from ochat_train.training.engine import start_engine
from ochat_train.training.loop import Run, outputs, run_steps
from ochat_train.training.meter import Meter
from ochat_train.training.prefetch import Prefetcher

_PREFETCHED = 8  # micro-batches made ahead of the GPU
_WATCHDOG_FIRST_SECONDS = 60.0  # the watchdog speaks before the collective gives up: it knows which rank is missing


def train(recipe: Recipe, *, resume: str, accept_changes: bool = False) -> None:
    """Train a recipe on a prepared dataset, on all ranks of the launcher.

    resume: `auto`, `never` or the folder of a checkpoint. accept_changes: go on from a checkpoint of other data or
    settings. Recipe, prepared data and library versions must be the same on all hosts, and the run folder one that all
    of them see: agreement.py. Raises StoppedBySignalError after a signal and its checkpoint, LostRanksError where
    another rank is gone, NotPushedError on rank 0 where the model is trained but could not be brought to the Hub.
    """
    ranks = start_ranks(timeout_seconds=recipe.train.hang_timeout_seconds + _WATCHDOG_FIRST_SECONDS)
    push, stop_request, run_lock = None, StopRequest(), RunLock(Path(recipe.output_dir))
    try:
        manifest = on_every_rank(ranks, lambda: check_prepared(recipe))
        require_agreement(ranks, facts_of(recipe, data_fingerprint=manifest.fingerprint))
        on_main_rank(ranks, lambda: _check_and_lock(recipe, run_lock))
        require_shared_folder(ranks, Path(recipe.output_dir), name="output_dir")
        if recipe.train.push_to_hub is not None:
            on_main_rank(ranks, lambda: check_recipe_rights(recipe, policy=RetryPolicy()))  # before hours are spent
            push = BackgroundPush(recipe) if ranks.is_main else None
        _train(recipe, manifest, ranks, push, stop_request, run_lock, resume=resume, accept_changes=accept_changes)
        stop_ranks()
        if push is not None:  # alone: the other ranks need not wait for the Hub
            push.finish(stop_request)
    finally:
        if push is not None:
            push.close()
        stop_request.close()
        run_lock.close()


def _check_and_lock(recipe: Recipe, run_lock: RunLock) -> None:
    chosen_trackers(recipe.tracking)
    run_lock.acquire()


def _train(
    recipe: Recipe,
    manifest: Manifest,
    ranks: Ranks,
    push: BackgroundPush | None,
    stop_request: StopRequest,
    run_lock: RunLock,
    *,
    resume: str,
    accept_changes: bool,
) -> None:
    output_dir = Path(recipe.output_dir)
    split = PreparedSplit(Path(recipe.data.prepared_dir), "train")
    plan = training_plan(recipe, split)
    peak = peak_learning_rate(recipe, manifest)
    model, kernel = on_every_rank(
        ranks, lambda: build_model(recipe.model, manifest, device=ranks.device, seed=recipe.seed)
    )
    require_agreement(ranks, {"attention kernel": kernel})
    work = work_of(model.causal_lm)
    memory, compiled = plan_memory(recipe, model.causal_lm, ranks, kernel=kernel)
    recipe = resolve(recipe, memory, compiled=compiled)
    set_up_layers(model, recipe, checkpointing=memory.checkpointing, device=ranks.device)
    decision = on_main_rank(
        ranks,
        lambda: decide(
            read_earlier_run(output_dir, resume),
            resume,
            num_ranks=ranks.num_ranks,
            recipe=recipe,
            data_fingerprint=manifest.fingerprint,
            accept_changes=accept_changes,
        ),
    )
    on_main_rank(ranks, lambda: set_aside(decision, run_lock))
    if ranks.is_main:
        write_run_folder(output_dir, recipe, model.causal_lm)
    engine = start_engine(model, recipe, ranks, load_universal=decision.reshard)
    torch.manual_seed(recipe.seed + ranks.rank)  # dropout differs between ranks
    progress = resume_state(decision, engine, ranks, seed=recipe.seed)
    if ranks.is_main:
        _announce(recipe, plan, split, ranks, kernel, peak, decision.checkpoint)
        if ranks.device.type == "cuda":
            print(memory_text(memory), file=sys.stderr, flush=True)
    validator = Validator(recipe, manifest, num_steps=plan.num_steps)
    stop_request.listen()  # from here on a step can be finished and a checkpoint written
    watchdog = Watchdog(
        output_dir, ranks, timeout_seconds=recipe.train.hang_timeout_seconds, on_beat=stop_request.notice_ended_launcher
    )
    trackers = Trackers(
        chosen_trackers(recipe.tracking) if ranks.is_main else [],
        run_facts(recipe, manifest, ranks, first_step=progress.step),
        say=say,
    )
    batches = Prefetcher(
        run_micro_batches(
            split,
            plan,
            first_step=progress.step,
            rank=ranks.rank,
            num_ranks=ranks.num_ranks,
            packs_per_micro_batch=recipe.train.packs_per_micro_batch or 1,
            pin=ranks.device.type == "cuda",
        ),
        depth=_PREFETCHED,
    )
    run = Run(
        recipe=recipe,
        manifest=manifest,
        split=split,
        plan=plan,
        ranks=ranks,
        engine=engine,
        peak=peak,
        batches=batches,
        meter=Meter(work, ranks.device, num_ranks=ranks.num_ranks),
        validator=validator,
        trackers=trackers,
        push=push,
    )
    try:
        with outputs(run, progress) as (writer, line):
            run_steps(run, progress, stop_request, watchdog, writer, line)
        watchdog.progress(plan.num_steps, "closing trackers")
        trackers.close(done=True, most_seconds=min(CLOSE_SECONDS, recipe.train.hang_timeout_seconds / 2))
    except torch.OutOfMemoryError as error:
        raise OneRankError(out_of_memory_text(memory, error)) from error
    except RuntimeError as error:
        if not is_lost_contact(error):
            raise
        watchdog.wait_for_silence()
        raise LostRanksError(
            f"lost contact with another rank: {watchdog.describe()}; {REMEDY} ({str(error).splitlines()[0][:200]})"
        ) from error
    finally:
        trackers.close(done=False, most_seconds=STOPPED_CLOSE_SECONDS)  # of a run that did not come to its end
        batches.close()
        watchdog.close()


def plan_memory(recipe: Recipe, causal_lm: Any, ranks: Ranks, *, kernel: str) -> tuple[MemoryPlan, bool]:
    """The same memory plan on all ranks, from the one with the least free memory; and whether layers are compiled.

    Raises UserError where nothing fits.
    """
    is_gpu = ranks.device.type == "cuda"
    compiled = is_compiled(recipe.model, kernel=kernel, device=ranks.device)
    there = sum(p.numel() * p.element_size() for p in causal_lm.parameters() if p.device == ranks.device)
    free = torch.tensor(
        free_gpu_bytes(ranks.device) + there if is_gpu else 0.0, dtype=torch.float64, device=ranks.device
    )
    torch.distributed.all_reduce(free, op=torch.distributed.ReduceOp.MIN)
    shape = model_shape(
        causal_lm.config,
        vocab_size=causal_lm.config.vocab_size,
        compiled=compiled,
        num_parameters=sum(parameter.numel() for parameter in causal_lm.parameters()),
    )
    plan = fastest_plan(
        recipe, shape, num_gpus=ranks.num_ranks, free_bytes=float(free), compiled=compiled, is_gpu=is_gpu
    )
    if not plan.fits and recipe.model.activation_checkpointing == "auto":  # a setting by hand is tried
        raise too_little_memory(plan, num_gpus=ranks.num_ranks)
    return plan, compiled


def _announce(
    recipe: Recipe,
    plan: TrainingPlan,
    split: PreparedSplit,
    ranks: Ranks,
    kernel: str,
    peak: float,
    checkpoint: Path | None,
) -> None:
    start = f"resumes from {checkpoint}" if checkpoint else "starts from the base model"
    print(
        f"{recipe.name}: {len(split):,} conversations, {plan.num_steps:,} steps of {recipe.train.tokens_per_step:,} "
        "tokens, "
        f"packs {plan.packing_efficiency:.2%} full, learning rate {peak:.4g}\n"
        f"{ranks.num_ranks} rank(s) on {ranks.device.type}, ZeRO-{recipe.deepspeed.zero_stage}, attention: {kernel}"
        f"{', compiled layers' if recipe.model.compile else ''}{', float8' if recipe.model.float8 else ''}; {start}",
        file=sys.stderr,
        flush=True,
    )
