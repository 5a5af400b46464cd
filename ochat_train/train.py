"""The training loop. Everything it calls is prepared before the first step; the step itself is `train_step`."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_pipeline.errors import UserError
from data_pipeline.plan.plan import TrainingPlan, deal
from data_pipeline.prepared.dataset import Manifest, PreparedSplit
from ochat_train.anomalies import progressed, record_anomaly
from ochat_train.batches import Prefetcher, run_micro_batches
from ochat_train.checkpoint.resume import choose_checkpoint, resume_state
from ochat_train.checkpoint.state import Progress
from ochat_train.checkpoint.writer import save_checkpoint
from ochat_train.distributed.agreement import facts_of, on_every_rank, require_agreement, require_shared_folder
from ochat_train.distributed.ranks import Ranks, on_main_rank, start_ranks, stop_ranks
from ochat_train.distributed.stop_request import StopRequest
from ochat_train.distributed.watchdog import REMEDY, Watchdog, is_lost_contact
from ochat_train.engine import start_engine, update
from ochat_train.evaluation.validation import Validator
from ochat_train.hub.background_push import BackgroundPush
from ochat_train.hub.retry import Patience
from ochat_train.hub.rights import check_recipe_rights
from ochat_train.metrics import EpochSums, MetricsWriter, StepSums, step_metrics
from ochat_train.model.batch import PackedBatch
from ochat_train.model.build import build_model, is_compiled, set_up_layers
from ochat_train.planning.learning_rate import learning_rate_at
from ochat_train.planning.memory import (
    MemoryPlan,
    fastest_plan,
    free_gpu_bytes,
    memory_text,
    model_shape,
    out_of_memory_text,
    resolve,
    too_little_text,
)
from ochat_train.planning.steps import peak_learning_rate, training_plan
from ochat_train.planning.work import work_of
from ochat_train.recipe.preparation import check_prepared
from ochat_train.recipe.sections import Recipe
from ochat_train.report.progress_line import ProgressLine
from ochat_train.report.text import class_sums_text, validation_text
from ochat_train.runs.folder import lock_run_folder, unlock_run_folder, write_run_folder
from ochat_train.system.exits import LostRanksError, OneRankError, StoppedBySignalError
from ochat_train.system.say import say
from ochat_train.throughput import Meter
from ochat_train.tracking.choice import chosen_trackers
from ochat_train.tracking.delivery import CLOSE_SECONDS, STOPPED_CLOSE_SECONDS, Trackers
from ochat_train.tracking.facts import run_facts

_PREFETCHED = 8  # micro-batches made ahead of the GPU
_WATCHDOG_FIRST_SECONDS = 60.0  # the watchdog speaks before the collective gives up: it knows which rank is missing


def train_step(
    engine: Any,
    batches: Iterable[PackedBatch],
    *,
    denominator: float,
    learning_rate: float,
    num_ranks: int,
    stop: bool = False,
) -> StepSums:
    """One optimizer step over all ranks: gradient of sum(w * nll) / denominator, clip, AdamW update.

    batches: this rank's micro-batches, as many as the engine's gradient accumulation steps. denominator: weight by
    which the loss sum of all ranks and micro-batches is divided; DeepSpeed averages gradients over ranks, which the
    factor num_ranks undoes. stop: whether this rank was asked to stop; all ranks learn of it with the sums.

    Returns the sums over all ranks. A loss or gradient that is not finite, on any rank, leaves the update out on all.
    """
    device = next(engine.module.parameters()).device
    for group in engine.optimizer.param_groups:
        group["lr"] = learning_rate
    per_class: torch.Tensor | float = 0.0
    num_tokens = 0
    losses = []
    for index, batch in enumerate(batches):
        if index:
            engine.step()  # not at a boundary: counts the micro-batch
        sums = engine(batch.to(device))
        losses.append(sums.weighted_nll.detach())
        # a loss that is not finite must not be lost between finite gradients: it makes all of them NaN
        scale = torch.where(losses[-1].isfinite(), num_ranks / denominator, torch.nan)
        engine.backward(sums.weighted_nll * scale, scale_wrt_gas=False)
        per_class = per_class + sums.per_class.double()
        num_tokens += batch.num_tokens
    assert isinstance(per_class, torch.Tensor), "a step has at least one micro-batch"
    everything = torch.cat((per_class.flatten(), per_class.new_tensor([num_tokens, stop])))
    torch.distributed.all_reduce(everything)
    grad_norm = update(engine)
    everything = everything.cpu()  # waits for the GPU, so after the update has been given to it
    is_finite = math.isfinite(grad_norm)
    bad_packs = [] if is_finite else (~torch.stack(losses).isfinite()).nonzero()[:, 0].tolist()
    return StepSums(
        per_class=everything[:-2].reshape(per_class.shape),
        num_tokens=int(everything[-2]),
        grad_norm=grad_norm,
        bad_packs=bad_packs,
        stop=bool(everything[-1]),
    )


def train(recipe: Recipe, *, resume: str, accept_changes: bool = False) -> None:
    """Train a recipe on a prepared dataset, on all ranks of the launcher.

    resume: `auto`, `never` or the folder of a checkpoint. accept_changes: go on from a checkpoint of other data or
    settings. Recipe, prepared data and library versions must be the same on all hosts, and the run folder one that all
    of them see: agreement.py. Raises StoppedBySignalError after a signal and its checkpoint, LostRanksError where
    another rank is gone, NotPushedError on rank 0 where the model is trained but could not be brought to the Hub.
    """
    ranks = start_ranks(timeout_seconds=recipe.train.hang_timeout_seconds + _WATCHDOG_FIRST_SECONDS)
    push, stop_request = None, StopRequest()
    try:
        manifest = on_every_rank(ranks, lambda: check_prepared(recipe))
        require_agreement(ranks, facts_of(recipe, data_fingerprint=manifest.fingerprint))
        on_main_rank(ranks, lambda: _check_and_lock(recipe))
        require_shared_folder(ranks, Path(recipe.output_dir), name="output_dir")
        if recipe.train.push_to_hub is not None:
            on_main_rank(ranks, lambda: check_recipe_rights(recipe, patience=Patience()))  # before hours are spent
            push = BackgroundPush(recipe) if ranks.is_main else None
        _train(recipe, manifest, ranks, push, stop_request, resume=resume, accept_changes=accept_changes)
        stop_ranks()
        if push is not None:  # alone: the other ranks need not wait for the Hub
            push.finish(stop_request)
    finally:
        if push is not None:
            push.close()
        stop_request.close()
        unlock_run_folder()


def _check_and_lock(recipe: Recipe) -> None:
    chosen_trackers(recipe.tracking)
    lock_run_folder(Path(recipe.output_dir))


def _train(
    recipe: Recipe,
    manifest: Manifest,
    ranks: Ranks,
    push: BackgroundPush | None,
    stop_request: StopRequest,
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
    resume_point = on_main_rank(
        ranks,
        lambda: choose_checkpoint(
            output_dir,
            resume,
            num_ranks=ranks.num_ranks,
            recipe=recipe,
            data_fingerprint=manifest.fingerprint,
            accept_changes=accept_changes,
        ),
    )
    if resume == "never":
        on_main_rank(ranks, lambda: lock_run_folder(output_dir))  # the locked one went aside with the earlier run
    if ranks.is_main:
        write_run_folder(output_dir, recipe, model.causal_lm)
    engine = start_engine(model, recipe, ranks, load_universal=resume_point is not None and resume_point.reshard)
    torch.manual_seed(recipe.seed + ranks.rank)  # dropout differs between ranks
    progress = resume_state(resume_point, engine, ranks, seed=recipe.seed) if resume_point else Progress()
    if ranks.is_main:
        _announce(recipe, plan, split, ranks, kernel, peak, resume_point.folder if resume_point else None)
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
        with _outputs(run, progress) as (writer, line):
            _loop(run, progress, stop_request, watchdog, writer, line)
        watchdog.progress(plan.num_steps, "closing trackers")
        trackers.close(done=True, most_seconds=min(CLOSE_SECONDS, recipe.train.hang_timeout_seconds / 2))
    except torch.OutOfMemoryError as error:
        raise OneRankError(out_of_memory_text(memory, recipe, error)) from error
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
        raise UserError(too_little_text(plan, num_gpus=ranks.num_ranks))
    return plan, compiled


@dataclass(frozen=True, kw_only=True)
class Run:
    """What stays the same over a run."""

    recipe: Recipe
    manifest: Manifest
    split: PreparedSplit
    plan: TrainingPlan
    ranks: Ranks
    engine: Any
    peak: float
    batches: Prefetcher[PackedBatch]
    meter: Meter
    validator: Validator
    trackers: Trackers
    push: BackgroundPush | None  # of rank 0, if the recipe pushes


@contextlib.contextmanager
def _outputs(run: Run, progress: Progress) -> Iterator[tuple[MetricsWriter | None, ProgressLine]]:
    """The run folder's files (rank 0) and the progress line; closed whatever ends the steps, so before a message about
    it.
    """
    with contextlib.ExitStack() as stack:
        writer = None
        if run.ranks.is_main:
            writer = MetricsWriter(Path(run.recipe.output_dir), run.trackers, first_step=progress.step)
            stack.enter_context(contextlib.closing(writer))
        line = ProgressLine(first_step=progress.step, num_steps=run.plan.num_steps, shown=run.ranks.is_main)
        yield writer, stack.enter_context(contextlib.closing(line))


def _loop(
    run: Run,
    progress: Progress,
    stop_request: StopRequest,
    watchdog: Watchdog,
    writer: MetricsWriter | None,
    line: ProgressLine,
) -> None:
    recipe, plan, ranks, output_dir = run.recipe, run.plan, run.ranks, Path(run.recipe.output_dir)
    save_every = recipe.checkpoint.save_every_steps or plan.num_steps
    class_names = [row.name for row in run.manifest.classes]
    epoch_sums = EpochSums(num_classes=len(class_names), first_step=progress.step, steps_per_epoch=plan.steps_per_epoch)
    for step in range(progress.step, plan.num_steps):
        run.meter.start(waited_seconds=run.batches.waited_seconds)
        watchdog.progress(step + 1, "training")
        epoch, step_in_epoch = plan.locate(step)
        epoch_plan = plan.epoch(epoch)
        packs = deal(epoch_plan, step_in_epoch, num_ranks=ranks.num_ranks)[ranks.rank]
        learning_rate = learning_rate_at(
            step + 1,
            peak=run.peak,
            num_steps=plan.num_steps,
            warmup_ratio=recipe.optimizer.warmup_ratio,
            min_lr_ratio=recipe.optimizer.min_lr_ratio,
        )
        sums = train_step(
            run.engine,
            islice(run.batches, run.engine.gradient_accumulation_steps()),
            denominator=plan.denominator(step, recipe.train.loss_denominator),
            learning_rate=learning_rate,
            num_ranks=ranks.num_ranks,
            stop=stop_request.reason is not None,
        )
        squared_lengths = float(epoch_plan.attention_costs[epoch_plan.step_packs(step_in_epoch)].sum())
        speed = run.meter.stop(
            num_tokens=sums.num_tokens, squared_lengths=squared_lengths, waited_seconds=run.batches.waited_seconds
        )
        tokens_per_class = _tokens_per_class(
            run.split, epoch_plan.step_rows(step_in_epoch), num_classes=len(class_names)
        )
        epoch_sums.add(epoch, sums.per_class, tokens_per_class)
        progress, anomaly = progressed(progress, sums.grad_norm)
        if anomaly is not None:
            record_anomaly(
                anomaly,
                output_dir,
                ranks,
                progress=progress,
                grad_norm=sums.grad_norm,
                split=run.split,
                plan=epoch_plan,
                packs=packs,
                bad_packs=sums.bad_packs,
            )
        is_last = progress.step == plan.num_steps
        if writer is not None and (progress.step % recipe.train.log_every_steps == 0 or is_last):
            metrics = {
                "step": progress.step,
                "epoch": epoch,
                **step_metrics(sums.per_class, class_names, tokens_per_class=tokens_per_class),
                "learning_rate": learning_rate,
                "grad_norm": sums.grad_norm if math.isfinite(sums.grad_norm) else None,
                "nonfinite_steps": progress.nonfinite_steps,
                **speed,
            }
            writer.write(metrics)
            line.update(metrics)
        if progress.nonfinite_in_a_row >= recipe.train.max_nonfinite_steps:
            raise UserError(_too_many_nonfinite(progress))
        saves = progress.step % save_every == 0 or is_last
        validation_loss = None
        if run.validator.is_due(progress.step, saves=saves) and not sums.stop:  # a stopped run has no time for it
            watchdog.progress(progress.step, "validating")
            result = run.validator.run(run.engine, ranks, progress.step)
            validation_loss = result.loss
            if writer is not None:
                writer.write_validation(result)
                line.print(validation_text(result))
        if saves or sums.stop:
            watchdog.progress(progress.step, "writing a checkpoint")
            save_checkpoint(
                run.engine,
                ranks,
                output_dir,
                progress=progress,
                recipe=recipe,
                data_fingerprint=run.manifest.fingerprint,
                validation_loss=validation_loss,
            )
            if run.push is not None and not sums.stop:
                run.push.checkpoint_written()
        if sums.stop and not is_last:
            raise StoppedBySignalError(_stopped(stop_request, progress, plan))
    if (summary := epoch_sums.metrics(class_names)) is not None:
        line.print(class_sums_text(summary))


def _tokens_per_class(split: PreparedSplit, rows: np.ndarray, *, num_classes: int) -> list[int]:
    """All tokens of rows (int64) of each class, prompts included."""
    tokens = np.bincount(split.class_id[rows], weights=split.num_tokens[rows], minlength=num_classes)
    return [int(count) for count in tokens]


def _too_many_nonfinite(progress: Progress) -> str:
    return (
        f"step {progress.step}: loss or gradient was not finite {progress.nonfinite_in_a_row} times in a row "
        "(train.max_nonfinite_steps); the model was not updated by these steps, and its checkpoints are finite. "
        "Lower optimizer.learning_rate, or look at the conversations in anomalies.jsonl"
    )


def _stopped(stop_request: StopRequest, progress: Progress, plan: TrainingPlan) -> str:
    return (
        f"stopped by {stop_request.reason or 'a signal to another rank'} after step {progress.step} of "
        f"{plan.num_steps}; its checkpoint is written, start again to go on"
    )


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
