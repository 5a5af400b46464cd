"""What a recipe would do, computed without training: the numbers of `ochat plan`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.errors import UserError
from data_pipeline.plan.plan import TrainingPlan, num_micro_batches, plan_epoch
from data_pipeline.prepared.dataset import Manifest, PreparedSplit
from ochat_train.evaluation.inputs import validation_inputs
from ochat_train.evaluation.schedule import time_ratio
from ochat_train.model.base_class import text_config
from ochat_train.model.build import compile_obstacle
from ochat_train.model.config import (
    load_base_config,
    model_without_weights,
    num_added_rows,
    num_frozen_parameters,
    num_parameters,
)
from ochat_train.planning.adapters import AdapterShape, adapter_shape
from ochat_train.planning.memory import MemoryPlan, StepCosts, fastest_of, possible_plans
from ochat_train.planning.memory_parts import ModelShape, model_shape
from ochat_train.planning.memory_text import too_little_memory
from ochat_train.planning.results import PlannedRun, PlannedSetting, PlannedTime, PlanReport
from ochat_train.planning.steps import peak_learning_rate, training_plan
from ochat_train.planning.time import Gpu, MeanPack, assumed_speed, step_seconds, useful_ratio
from ochat_train.planning.waiting import waiting_ratio
from ochat_train.planning.work import Work, work_of
from ochat_train.recipe.preparation import check_prepared, prepare_job
from ochat_train.recipe.recipe import Recipe
from ochat_train.system.sizes import GIB

_CONTEXT_GIB = 1.0  # of a GPU's memory, for the CUDA context and libraries


def plan_report(
    recipe: Recipe, *, num_gpus: int, gpu: Gpu, mfu: float | None = None, price: float | None = None
) -> PlanReport:
    """The plan of a recipe, from its prepared dataset (if there is one) and the base's configuration alone.

    mfu: share of the GPUs' peak to estimate the time with; None: what was measured. price: of a GPU-hour, in the user's
    currency. Raises UserError where the prepared dataset was made from another recipe.
    """
    _require_float8_gpu(recipe, gpu)
    train = recipe.train
    is_prepared = Manifest.load(Path(recipe.data.prepared_dir)) is not None
    manifest = check_prepared(recipe) if is_prepared else None
    vocab_size = manifest.vocab_size if manifest else prepare_job(recipe).tokenizer.vocab_size
    model = model_without_weights(load_base_config(recipe.model, vocab_size))
    memory = memory_choice(recipe, model, vocab_size=vocab_size, num_gpus=num_gpus, gpu_memory_gib=gpu.memory_gib)
    chosen, num_parameters = memory.chosen, memory.shape.num_parameters
    work = _work(model, vocab_size, adapter=memory.shape.adapter)
    data = _training_data(recipe) if manifest else None
    useful = useful_ratio(work, data.mean_pack, pack_length_tokens=train.pack_length_tokens) if data else 1.0
    speed = assumed_speed(
        recipe,
        chosen,
        gpu=gpu,
        num_parameters=num_parameters,
        own=mfu,
        useful=useful,
        trained_ratio=memory.shape.trained_ratio,
    )
    packs_per_gpu = num_micro_batches(train.packs_per_step, num_gpus)
    time = None
    if data and chosen.fits and speed.mfu is not None:
        time = _time(data, work, gpu=gpu, num_gpus=num_gpus, packs_per_gpu=packs_per_gpu, mfu=speed.mfu, price=price)
    return PlanReport(
        gpu=gpu.name,
        num_gpus=num_gpus,
        gpu_memory_gib=gpu.memory_gib,
        num_parameters=num_parameters,
        num_trained_parameters=memory.shape.num_trained,
        adapter=None if recipe.adapter is None else recipe.adapter.type,
        adapter_rank=None if recipe.adapter is None else recipe.adapter.rank,
        classes=manifest.classes if manifest else [],
        run=_run(recipe, manifest, data, work, num_gpus=num_gpus) if manifest and data else None,
        time=time,
        tokens_per_step=train.tokens_per_step,
        bins_per_step=train.packs_per_step,
        packs_per_gpu=packs_per_gpu,
        empty_packs_per_step=packs_per_gpu * num_gpus - train.packs_per_step,
        loss_denominator=train.loss_denominator,
        mfu_assumed=speed.mfu,
        mfu_basis=speed.basis,
        peak_tflops=gpu.peak_flops / 1e12,
        fits=chosen.fits,
        problem=None if chosen.fits else str(too_little_memory(chosen, num_gpus=num_gpus)),
        zero_stage=chosen.zero_stage,
        activation_checkpointing=chosen.checkpointing_text,
        packs_per_micro_batch=chosen.packs_per_micro_batch,
        optimizer_states=chosen.states,
        memory_gib_per_gpu={name: _gib(size) for name, size in (*chosen.parts.items(), ("total", chosen.total))},
        settings=_settings(memory),
    )


def _require_float8_gpu(recipe: Recipe, gpu: Gpu) -> None:
    if recipe.model.float8 and gpu.name == "A100":
        problem = "true cannot be used on an A100: it needs an Ada, Hopper or later GPU"
        raise UserError("model.float8", problem, "set it to false")


@dataclass(frozen=True, kw_only=True)
class MemoryChoice:
    """Every setting that a recipe leaves open, and the one that a run would choose."""

    shape: ModelShape
    plans: Sequence[MemoryPlan]
    chosen: MemoryPlan
    costs: StepCosts

    def relative_seconds(self, plan: MemoryPlan) -> float:
        """Time of a step under a setting, as a multiple of a step under the chosen one."""
        return self.costs.relative_seconds(plan) / self.costs.relative_seconds(self.chosen)


def memory_choice(recipe: Recipe, model: Any, *, vocab_size: int, num_gpus: int, gpu_memory_gib: float) -> MemoryChoice:
    """What a run on such GPUs would choose from, with compiled layers unless recipe or base do not allow it.

    model: the base, without weights.
    """
    obstacle = compile_obstacle(model, recipe.model, recipe.adapter)
    compiled = recipe.model.compile is not False and obstacle is None
    parameters = num_parameters(model, vocab_size)
    shape = model_shape(
        model.config,
        vocab_size=vocab_size,
        num_parameters=parameters,
        num_frozen=num_frozen_parameters(model),
        compiled=compiled,
        adapter=adapter_shape(recipe.adapter, model, vocab_size=vocab_size),
    )
    costs = StepCosts.of(recipe, compiled=compiled, trained_ratio=shape.trained_ratio)
    free_bytes = (gpu_memory_gib - _CONTEXT_GIB) * GIB
    plans = possible_plans(recipe, shape, num_gpus=num_gpus, free_bytes=free_bytes, is_gpu=True)
    return MemoryChoice(shape=shape, plans=plans, chosen=fastest_of(plans, costs), costs=costs)


def _work(model: Any, vocab_size: int, *, adapter: AdapterShape | None) -> Work:
    """The work of a model with rows for `vocab_size` tokens. adapter: what is trained of it, None for everything."""
    work = work_of(model)
    added = num_added_rows(model, vocab_size) * text_config(model.config).hidden_size
    work = replace(work, matmul_parameters=work.matmul_parameters + added)
    return work if adapter is None else work.with_adapter(adapter.num_in_products)


@dataclass(frozen=True, kw_only=True)
class _TrainingData:
    """The training split. num_tokens: of an epoch."""

    plan: TrainingPlan
    num_conversations: int
    num_tokens: int
    mean_pack: MeanPack


def _training_data(recipe: Recipe) -> _TrainingData:
    split = PreparedSplit(Path(recipe.data.prepared_dir), "train")
    plan = training_plan(recipe, split)
    lengths = split.num_tokens.astype(np.float64)
    num_packs = len(plan.epoch(recipe.train.epochs - 1).packs)
    mean_pack = MeanPack(
        num_tokens=float(lengths.sum()) / num_packs, squared_lengths=float((lengths**2).sum()) / num_packs
    )
    return _TrainingData(plan=plan, num_conversations=len(split), num_tokens=int(lengths.sum()), mean_pack=mean_pack)


def _waiting(recipe: Recipe, data: _TrainingData, work: Work, *, num_gpus: int) -> tuple[float, float]:
    """`waiting_ratio` of the last epoch, and what it would be with balanced steps."""
    epoch = recipe.train.epochs - 1
    plan = data.plan.epoch(epoch)
    balanced = plan_epoch(
        plan.lengths,
        plan.weight_sums,
        capacity=plan.capacity,
        packs_per_step=plan.packs_per_step,
        seed=recipe.seed,
        epoch=epoch,
        kind="balanced",
    )
    return waiting_ratio(plan, work, num_ranks=num_gpus), waiting_ratio(balanced, work, num_ranks=num_gpus)


def _run(recipe: Recipe, manifest: Manifest, data: _TrainingData, work: Work, *, num_gpus: int) -> PlannedRun:
    waiting, balanced_waiting = _waiting(recipe, data, work, num_gpus=num_gpus)
    num_steps = data.plan.num_steps
    peak = peak_learning_rate(recipe, manifest)
    inputs = validation_inputs(recipe, manifest)
    schedule = inputs.schedule(recipe, num_steps=num_steps)
    num_validations = schedule.num_validations(save_every_steps=recipe.checkpoint.save_every_steps or num_steps)
    return PlannedRun(
        steps_per_epoch=data.plan.steps_per_epoch,
        num_steps=num_steps,
        tokens_per_epoch=data.num_tokens,
        packing_efficiency=data.plan.packing_efficiency,
        conversations_per_epoch=data.num_conversations,
        max_conversations_per_pack=data.plan.max_conversations_per_pack,
        waiting_ratio=waiting,
        balanced_waiting_ratio=balanced_waiting,
        learning_rate=peak.value,
        learning_rate_rule=peak.rule,
        num_validations=num_validations,
        validation_time_ratio=time_ratio(
            num_validations,
            inputs.held_out_tokens,
            tokens_per_step=recipe.train.tokens_per_step,
            num_steps=num_steps,
        ),
    )


def _time(
    data: _TrainingData, work: Work, *, gpu: Gpu, num_gpus: int, packs_per_gpu: int, mfu: float, price: float | None
) -> PlannedTime:
    seconds = step_seconds(work, data.mean_pack, packs_per_gpu=packs_per_gpu, gpu=gpu, mfu=mfu)
    hours = seconds * data.plan.num_steps / 3600
    return PlannedTime(
        seconds_per_step=seconds,
        tokens_per_second=float(data.num_tokens / np.mean(data.plan.steps_per_epoch)) / seconds,
        hours=hours,
        gpu_hours=hours * num_gpus,
        price_per_gpu_hour=price,
        cost=None if price is None else hours * num_gpus * price,
    )


def _settings(memory: MemoryChoice) -> list[PlannedSetting]:
    """The settings that are worth showing, by ZeRO stage and packs."""
    plans = sorted(_shown(memory.plans, memory.chosen), key=lambda plan: (plan.zero_stage, plan.packs_per_micro_batch))
    return [
        PlannedSetting(
            zero_stage=plan.zero_stage,
            activation_checkpointing=plan.checkpointing_text,
            packs_per_micro_batch=plan.packs_per_micro_batch,
            memory_gib=_gib(plan.total),
            fits=plan.fits,
            relative_seconds=round(memory.relative_seconds(plan), 3),
            chosen=plan is memory.chosen,
        )
        for plan in plans
    ]


def _shown(plans: Sequence[MemoryPlan], chosen: MemoryPlan) -> Iterator[MemoryPlan]:
    """Of each ZeRO stage and number of packs: what recomputes nothing, little or all, and the least of it that fits."""
    seen: set[tuple[int, int]] = set()
    for plan in plans:
        num_full = plan.checkpointing.count("full")
        is_end = num_full in (0, len(plan.checkpointing))
        key = (plan.zero_stage, plan.packs_per_micro_batch)
        is_first_that_fits = plan.fits and "none" not in plan.checkpointing and key not in seen
        if is_first_that_fits:
            seen.add(key)
        if is_end or is_first_that_fits or plan is chosen:
            yield plan


def _gib(size: float) -> float:
    return round(size / GIB, 2)
