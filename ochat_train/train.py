"""The training loop. Everything it calls is prepared before the first step; the step itself is `train_step`."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from data_pipeline.dataset import Manifest, PreparedSplit
from data_pipeline.errors import UserError
from data_pipeline.plan import TrainingPlan, deal
from ochat_train.batches import PackedBatch, micro_batches
from ochat_train.checkpoint import choose_checkpoint, load_checkpoint, save_checkpoint
from ochat_train.engine import Ranks, start_engine, start_ranks, stop_ranks, update
from ochat_train.learning_rate import auto_learning_rate, learning_rate_at
from ochat_train.metrics import MetricsWriter, ProgressLine, StepSums, step_metrics
from ochat_train.model import build_model, load_base_config
from ochat_train.prepare_data import check_prepared
from ochat_train.recipe import Recipe
from ochat_train.run_folder import write_run_folder


def train_step(
    engine: Any, batches: Iterable[PackedBatch], *, denominator: float, learning_rate: float, num_ranks: int
) -> StepSums:
    """One optimizer step over all ranks: gradient of sum(w * nll) / denominator, clip, AdamW update.

    batches: this rank's micro-batches, as many as the engine's gradient accumulation steps. denominator: weight by
    which the loss sum of all ranks and micro-batches is divided; DeepSpeed averages gradients over ranks, which the
    factor num_ranks undoes.

    Returns the sums over all ranks. Raises FloatingPointError, on all ranks and before the update, if the loss is not finite.
    """
    for group in engine.optimizer.param_groups:
        group["lr"] = learning_rate
    per_class: torch.Tensor | float = 0.0
    num_tokens = 0
    for index, batch in enumerate(batches):
        if index:
            engine.step()  # not at a boundary: counts the micro-batch
        sums = engine(batch)
        engine.backward(sums.weighted_nll * (num_ranks / denominator), scale_wrt_gas=False)
        per_class = per_class + sums.per_class.double()
        num_tokens += batch.num_tokens
    per_class, num_tokens = _sum_over_ranks(per_class, num_tokens)
    if not torch.isfinite(per_class).all():
        raise FloatingPointError("the loss is not finite")
    grad_norm = update(engine)
    return StepSums(per_class=per_class, num_tokens=num_tokens, grad_norm=grad_norm)


def _sum_over_ranks(per_class: torch.Tensor | float, num_tokens: int) -> tuple[torch.Tensor, int]:
    assert isinstance(per_class, torch.Tensor), "a step has at least one micro-batch"
    everything = torch.cat((per_class.flatten(), per_class.new_tensor([num_tokens])))
    torch.distributed.all_reduce(everything)
    everything = everything.cpu()
    return everything[:-1].reshape(per_class.shape), int(everything[-1])


def train(recipe: Recipe, *, resume: str) -> None:
    """Train a recipe on a prepared dataset, on all ranks of the launcher.

    resume: `auto`, `never` or the folder of a checkpoint.
    """
    manifest = check_prepared(recipe)
    ranks = start_ranks()
    output_dir = Path(recipe.output_dir)
    split = PreparedSplit(Path(recipe.data.prepared_dir), "train")
    plan = training_plan(recipe, split)
    peak = peak_learning_rate(recipe, manifest)
    model, kernel = build_model(recipe.model, manifest, device=ranks.device, seed=recipe.seed)
    checkpoint = choose_checkpoint(output_dir, resume, ranks, recipe=recipe, data_fingerprint=manifest.fingerprint)
    if ranks.is_main:
        write_run_folder(output_dir, recipe, model.causal_lm)
    engine = start_engine(model, recipe, ranks)
    torch.manual_seed(recipe.seed + ranks.rank)  # dropout differs between ranks
    first_step = load_checkpoint(engine, ranks, checkpoint) if checkpoint else 0
    if ranks.is_main:
        _announce(recipe, plan, split, ranks, kernel, peak, checkpoint)
    _loop(engine, recipe, manifest, plan, split, ranks, peak=peak, first_step=first_step)
    stop_ranks()


def _loop(
    engine: Any, recipe: Recipe, manifest: Manifest, plan: TrainingPlan, split: PreparedSplit, ranks: Ranks, *,
    peak: float, first_step: int,
) -> None:  # fmt: skip
    output_dir = Path(recipe.output_dir)
    writer = MetricsWriter(output_dir, recipe, first_step=first_step) if ranks.is_main else None
    progress = ProgressLine(first_step=first_step, num_steps=plan.num_steps, shown=ranks.is_main)
    save_every = recipe.checkpoint.save_every_steps or plan.num_steps
    for step in range(first_step, plan.num_steps):
        start = time.monotonic()
        epoch, step_in_epoch = plan.locate(step)
        epoch_plan = plan.epoch(epoch)
        packs = deal(epoch_plan, step_in_epoch, num_ranks=ranks.num_ranks)[ranks.rank]
        learning_rate = learning_rate_at(
            step + 1, peak=peak, num_steps=plan.num_steps,
            warmup_ratio=recipe.optimizer.warmup_ratio, min_lr_ratio=recipe.optimizer.min_lr_ratio,
        )  # fmt: skip
        batches = micro_batches(split, epoch_plan, packs, max_sequences=plan.max_conversations_per_pack, device=ranks.device)
        try:
            sums = train_step(
                engine, batches, denominator=plan.denominator(step, recipe.train.loss_denominator),
                learning_rate=learning_rate, num_ranks=ranks.num_ranks,
            )  # fmt: skip
        except FloatingPointError as error:
            raise UserError(f"step {step + 1}: {error}; the model was not updated. Lower optimizer.learning_rate?") from None
        done = step + 1
        if writer is not None and (done % recipe.train.log_every_steps == 0 or done == plan.num_steps):
            metrics = step_metrics(sums, [row.name for row in manifest.classes])
            metrics = {
                "step": done,
                "epoch": epoch,
                **metrics,
                "learning_rate": learning_rate,
                "grad_norm": sums.grad_norm,
                "tokens_per_second": sums.num_tokens / (time.monotonic() - start),
            }
            writer.write(metrics)
            progress.update(metrics)
        if done % save_every == 0 or done == plan.num_steps:
            save_checkpoint(engine, ranks, output_dir, step=done, recipe=recipe, data_fingerprint=manifest.fingerprint)
    progress.close()
    if writer is not None:
        writer.close()


def training_plan(recipe: Recipe, split: PreparedSplit) -> TrainingPlan:
    """The plan of a whole run."""
    return TrainingPlan(
        split,
        capacity=recipe.train.pack_length_tokens,
        bins_per_step=recipe.train.bins_per_step,
        seed=recipe.seed,
        epochs=recipe.train.epochs,
        max_steps=recipe.train.max_steps,
    )


def peak_learning_rate(recipe: Recipe, manifest: Manifest) -> float:
    """The recipe's learning rate, or OpenChat's rule for `auto`."""
    if isinstance(recipe.optimizer.learning_rate, float):
        return recipe.optimizer.learning_rate
    counts = manifest.splits["train"]
    supervised_ratio = counts["supervised_tokens"] / counts["tokens"]
    config = load_base_config(recipe.model, manifest.vocab_size)
    return auto_learning_rate(
        model_type=config.model_type,
        vocab_size=config.vocab_size,
        supervised_tokens_per_step=recipe.train.tokens_per_step * supervised_ratio,
    )


def _announce(
    recipe: Recipe, plan: TrainingPlan, split: PreparedSplit, ranks: Ranks, kernel: str, peak: float, checkpoint: Path | None
) -> None:
    start = f"resumes from {checkpoint}" if checkpoint else "starts from the base model"
    print(
        f"{recipe.name}: {len(split):,} conversations, {plan.num_steps:,} steps of {recipe.train.tokens_per_step:,} tokens, "
        f"packs {plan.packing_efficiency:.2%} full, learning rate {peak:.4g}\n"
        f"{ranks.num_ranks} rank(s) on {ranks.device.type}, ZeRO-{recipe.deepspeed.zero_stage}, attention: {kernel}; {start}",
        file=sys.stderr,
        flush=True,
    )
