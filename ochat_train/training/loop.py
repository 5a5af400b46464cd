"""The steps of a run, one after the other."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.errors import UserError
from data_pipeline.plan.plan import TrainingPlan, deal
from data_pipeline.prepared.dataset import Manifest, PreparedSplit
from ochat_train.checkpoint.state import Progress
from ochat_train.checkpoint.writer import save_checkpoint
from ochat_train.distributed.ranks import Ranks
from ochat_train.distributed.stop_request import StopRequest
from ochat_train.distributed.watchdog import Watchdog
from ochat_train.evaluation.validation import Validator
from ochat_train.hub.background_push import BackgroundPush
from ochat_train.model.batch import PackedBatch
from ochat_train.planning.learning_rate import learning_rate_at
from ochat_train.recipe.sections import Recipe
from ochat_train.report.progress_line import ProgressLine
from ochat_train.report.text import class_sums_text, validation_text
from ochat_train.runs.metrics import StepMetrics
from ochat_train.system.exits import StoppedBySignalError
from ochat_train.system.json_values import finite_or_none
from ochat_train.tracking.delivery import Trackers
from ochat_train.training.anomalies import progressed, record_anomaly
from ochat_train.training.meter import Meter
from ochat_train.training.metrics import EpochSums, means_of
from ochat_train.training.outputs import MetricsWriter
from ochat_train.training.prefetch import Prefetcher
from ochat_train.training.step import train_step


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
def outputs(run: Run, progress: Progress) -> Iterator[tuple[MetricsWriter | None, ProgressLine]]:
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


def run_steps(
    run: Run,
    progress: Progress,
    stop_request: StopRequest,
    watchdog: Watchdog,
    writer: MetricsWriter | None,
    line: ProgressLine,
) -> None:
    """Take the steps of the run that are left, and save, validate and report between them."""
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
            metrics = StepMetrics(
                step=progress.step,
                epoch=epoch,
                means=means_of(sums.per_class, class_names, tokens_per_class=tokens_per_class),
                learning_rate=learning_rate,
                grad_norm=finite_or_none(sums.grad_norm),
                nonfinite_steps=progress.nonfinite_steps,
                speed=speed,
            )
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
