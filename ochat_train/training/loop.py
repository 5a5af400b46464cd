"""The steps of a run, one after the other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from data_pipeline.errors import UserError
from data_pipeline.prepared.dataset import Manifest, PreparedSplit
from ochat_train.checkpoint.basis import RunBasis
from ochat_train.checkpoint.state import Progress
from ochat_train.checkpoint.writer import save_checkpoint
from ochat_train.distributed.engine import TrainingEngine
from ochat_train.distributed.ranks import Ranks, on_any_rank, on_main_rank
from ochat_train.distributed.stop_request import StopRequest
from ochat_train.distributed.watchdog import Watchdog
from ochat_train.evaluation.results import ValidationResult
from ochat_train.evaluation.validation import Validator
from ochat_train.hub.background_push import BackgroundPush
from ochat_train.planning.learning_rate import learning_rate_at
from ochat_train.recipe.recipe import Recipe
from ochat_train.report.progress_line import ProgressLine
from ochat_train.report.text import class_sums_text, validation_text
from ochat_train.runs.metrics import Speed, StepMetrics
from ochat_train.runs.starts import utc_time
from ochat_train.system.exits import StoppedBySignalError
from ochat_train.system.json_values import finite_or_none
from ochat_train.training.adapter import ReachedTensors
from ochat_train.training.anomalies import progressed, record_anomaly
from ochat_train.training.benchmarks import Benchmarks
from ochat_train.training.meter import Meter
from ochat_train.training.metrics import EpochSums, ExpertTable, expert_means, means_of
from ochat_train.training.outputs import MetricsWriter
from ochat_train.training.prefetch import StepPrefetcher
from ochat_train.training.step import Step, StepSums, train_step


@dataclass(frozen=True, kw_only=True)
class Run:
    """What stays the same over a run.

    num_steps: of the whole run. steps_per_epoch: by epoch. peak: the highest learning rate.
    writer: None on ranks that write no metrics. push: of rank 0, if the recipe pushes.
    before_step: as in `Hooks`. reached: what the first step of an adapter has to reach, None without one.
    benchmarks: None without any.
    """

    recipe: Recipe
    manifest: Manifest
    basis: RunBasis
    split: PreparedSplit
    num_steps: int
    steps_per_epoch: list[int]
    peak: float
    ranks: Ranks
    engine: TrainingEngine
    steps: StepPrefetcher
    meter: Meter
    validator: Validator
    writer: MetricsWriter | None
    line: ProgressLine
    push: BackgroundPush | None
    watchdog: Watchdog
    stop_request: StopRequest
    before_step: Callable[[TrainingEngine, Step], Step]
    reached: ReachedTensors | None = None
    benchmarks: Benchmarks | None = None

    @property
    def output_dir(self) -> Path:
        """The run folder."""
        return Path(self.recipe.output_dir)

    @property
    def class_names(self) -> list[str]:
        """Names of the classes, by class number."""
        return [row.name for row in self.manifest.classes]

    @property
    def must_stop(self) -> bool:
        """Whether this rank was asked to stop, or could not write to the run folder."""
        return self.stop_request.reason is not None or (self.writer is not None and self.writer.failure is not None)

    def require_outputs(self) -> None:
        """Raise UserError on all ranks if rank 0 could not write, or the folder is no longer the run's. All call it."""
        on_main_rank(self.ranks, lambda: self.writer.require_written() if self.writer is not None else None)

    def saves_after(self, num_done: int) -> bool:
        """Whether a checkpoint is due after so many steps of the run."""
        save_every = self.recipe.checkpoint.save_every_steps or self.num_steps
        return num_done % save_every == 0 or num_done == self.num_steps


@dataclass(frozen=True, kw_only=True)
class DoneStep:
    """A step that was taken."""

    step: Step
    sums: StepSums
    learning_rate: float
    speed: Speed


def run_steps(run: Run, progress: Progress) -> None:
    """Take the remaining steps of the run; log, validate and save between them.

    Raises StoppedBySignalError after the checkpoint of a run that was asked to stop, UserError after too many steps in
    a row that were not finite, and where the run folder cannot be written or was taken away.
    """
    epoch_sums = EpochSums(
        num_classes=len(run.class_names), first_step=progress.step, steps_per_epoch=run.steps_per_epoch
    )
    expert_table = ExpertTable(first_step=progress.step)
    while progress.step < run.num_steps:
        done = take_step(run, progress.step)
        if run.reached is not None:
            run.reached.require_all()
        expert_table.add(done.sums.experts)
        epoch_sums.add(done.step.epoch, done.sums.per_class, done.step.tokens_per_class)
        progress = note_step(run, progress, done)
        log_step(run, progress, done)
        require_finite_steps(run, progress)
        # a stopped run has no time to validate
        validation_loss, stop = (None, True) if done.sums.stop else validate(run, progress)
        if run.saves_after(progress.step) or stop:
            shares = expert_table.take()
            if run.writer is not None and shares is not None:
                run.writer.write_experts(shares)
            save(run, progress, validation_loss=validation_loss, stop=stop)
            stop = on_any_rank(run.ranks, stop or run.must_stop)  # asked while it was written
        if stop and progress.step < run.num_steps:
            raise StoppedBySignalError(_stopped_text(run, progress))
    run.require_outputs()
    if (summary := epoch_sums.metrics(run.class_names)) is not None:
        run.line.print(class_sums_text(summary))


def take_step(run: Run, number: int) -> DoneStep:
    """Take step `number` (from 0) on all ranks."""
    run.meter.start(waited_seconds=run.steps.waited_seconds)
    run.watchdog.progress(number + 1, "training")
    learning_rate = learning_rate_at(
        number + 1,
        peak=run.peak,
        num_steps=run.num_steps,
        warmup_ratio=run.recipe.optimizer.warmup_ratio,
        min_lr_ratio=run.recipe.optimizer.min_lr_ratio,
    )
    step = next(run.steps)
    assert step.number == number, f"step {step.number} came for step {number}"
    step = run.before_step(run.engine, step)
    sums = train_step(
        run.engine,
        step.micro_batches,
        denominator=step.denominator,
        learning_rate=learning_rate,
        num_ranks=run.ranks.num_ranks,
        num_step_tokens=sum(step.tokens_per_class),
        stop=run.must_stop,
    )
    speed = run.meter.stop(
        num_tokens=sums.num_tokens, squared_lengths=step.squared_lengths, waited_seconds=run.steps.waited_seconds
    )
    return DoneStep(step=step, sums=sums, learning_rate=learning_rate, speed=speed)


def note_step(run: Run, progress: Progress, done: DoneStep) -> Progress:
    """The progress after a step; its conversations are written down if something was wrong with it."""
    progress, anomaly = progressed(progress, done.sums.grad_norm)
    if anomaly is not None:
        record_anomaly(
            anomaly,
            run.writer,
            run.ranks,
            progress=progress,
            step=done.step,
            sums=done.sums,
            split=run.split,
        )
    return progress


def log_step(run: Run, progress: Progress, done: DoneStep) -> None:
    """Write and show the metrics of a step that is logged, on rank 0."""
    is_logged = progress.step % run.recipe.train.log_every_steps == 0 or progress.step == run.num_steps
    if run.writer is None or not is_logged:
        return
    metrics = StepMetrics(
        step=progress.step,
        epoch=done.step.epoch,
        means=means_of(done.sums.per_class, run.class_names, tokens_per_class=done.step.tokens_per_class),
        learning_rate=done.learning_rate,
        grad_norm=finite_or_none(done.sums.grad_norm),
        nonfinite_steps=progress.nonfinite_steps,
        speed=done.speed,
        experts=expert_means(done.sums.experts, num_tokens=done.sums.num_tokens),
        time=utc_time(),
    )
    run.writer.write(metrics)
    run.line.update(metrics)


def require_finite_steps(run: Run, progress: Progress) -> None:
    """Raise UserError after too many steps in a row that were not finite."""
    if progress.nonfinite_in_a_row >= run.recipe.train.max_nonfinite_steps:
        raise UserError(
            f"step {progress.step}",
            f"loss or gradient was not finite {progress.nonfinite_in_a_row} times in a row "
            "(train.max_nonfinite_steps). These steps did not update the model, and its checkpoints are finite",
            "lower optimizer.learning_rate, or look at the conversations in anomalies.jsonl",
        )


class _StoppedBetweenError(Exception):
    """A rank was asked to stop in the middle of a validation. Raised on all ranks."""


def validate(run: Run, progress: Progress) -> tuple[float | None, bool]:
    """Validate if it is due after this step.

    Returns the loss of the validation that was made, if it is finite; and whether the run was asked to stop meanwhile,
    which leaves the validation out.
    """
    is_due = run.validator.is_due(progress.step, saves=run.saves_after(progress.step))
    has_benchmarks = run.benchmarks is not None and run.benchmarks.is_due(progress.step)
    if not (is_due or has_benchmarks):
        return None, False

    def between(what: str, done: int, total: int) -> None:
        run.line.doing(f"{what} {done}/{total}")
        if on_any_rank(run.ranks, run.must_stop):
            raise _StoppedBetweenError

    def benchmark_answers(what: str, done: int, total: int) -> None:
        run.watchdog.progress(progress.step, "answering benchmarks")
        between(what, done, total)

    run.watchdog.progress(progress.step, "validating")
    try:
        result = ValidationResult(validation=None, samples=[])
        if is_due:
            result = run.validator.run(run.engine, run.ranks, progress.step, between=between)
        if run.benchmarks is not None and has_benchmarks:
            found = run.benchmarks.run(run.engine, run.ranks, progress.step, between=benchmark_answers)
            result = replace(result, benchmarks=found)
    except _StoppedBetweenError:
        run.line.print(f"the validation after step {progress.step} is left out: the run was asked to stop")
        return None, True
    if run.writer is not None:
        run.writer.write_validation(result)
        run.line.print(validation_text(result))
    return result.loss, False


def save(run: Run, progress: Progress, *, validation_loss: float | None, stop: bool) -> None:
    """Write a checkpoint, and let it be pushed unless the run is about to stop."""
    run.watchdog.progress(progress.step, "writing a checkpoint")
    run.line.doing("writing a checkpoint")
    run.require_outputs()  # a checkpoint is written only when all lines before it are
    save_checkpoint(
        run.engine,
        run.ranks,
        run.output_dir,
        progress=progress,
        recipe=run.recipe,
        data_fingerprint=run.manifest.fingerprint,
        validation_loss=validation_loss,
        basis=run.basis,
    )
    if run.push is not None and not stop:
        run.push.checkpoint_written()


def _stopped_text(run: Run, progress: Progress) -> str:
    return (
        f"stopped by {run.stop_request.reason or 'a signal to another rank'} after step {progress.step} of "
        f"{run.num_steps}; its checkpoint is written, restart to resume from it"
    )
