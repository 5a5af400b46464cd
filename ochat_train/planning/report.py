"""What a recipe would do, without doing it: the numbers of `ochat plan`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.errors import UserError
from data_pipeline.plan.plan import TrainingPlan, num_micro_batches
from data_pipeline.prepared.dataset import Manifest, PreparedSplit
from ochat_train.evaluation.schedule import time_ratio
from ochat_train.evaluation.validation import Validator
from ochat_train.model.config import load_base_config, model_without_weights, num_added_rows, num_parameters
from ochat_train.planning.memory import (
    GIB,
    MemoryPlan,
    ModelShape,
    StepCosts,
    fastest_of,
    model_shape,
    possible_plans,
)
from ochat_train.planning.memory_text import too_little_memory
from ochat_train.planning.steps import peak_learning_rate, training_plan
from ochat_train.planning.time import Gpu, MeanPack, assumed_speed, step_seconds, useful_ratio
from ochat_train.planning.work import Work, work_of
from ochat_train.recipe.preparation import check_prepared, prepare_job
from ochat_train.recipe.sections import Recipe

_CONTEXT_GIB = 1.0  # of a GPU's memory, for the CUDA context and libraries


def plan_report(recipe: Recipe, *, num_gpus: int, gpu: Gpu, mfu: float | None = None) -> dict[str, Any]:
    """The document of `ochat plan --json`, from the prepared dataset and the base's configuration alone.

    mfu: share of the peak to reckon with, None for what was measured. What depends on the data is None where nothing is
    prepared yet. Raises UserError where the prepared dataset is another recipe's.
    """
    if recipe.model.float8 and gpu.name == "A100":
        raise UserError("model.float8", "true cannot be used on an A100: it needs an Ada, Hopper or later GPU")
    is_prepared = Manifest.load(Path(recipe.data.prepared_dir)) is not None
    manifest = check_prepared(recipe) if is_prepared else None
    vocab_size = manifest.vocab_size if manifest else prepare_job(recipe).tokenizer.vocab_size
    model = model_without_weights(load_base_config(recipe.model, vocab_size))
    work = _work(model, vocab_size)
    memory = memory_choice(recipe, model, vocab_size=vocab_size, num_gpus=num_gpus, gpu_memory_gib=gpu.memory_gib)
    chosen = memory.chosen
    per_gpu = num_micro_batches(recipe.train.bins_per_step, num_gpus)
    data = _training_data(recipe) if manifest else None
    useful = useful_ratio(work, data.mean_pack, pack_length_tokens=recipe.train.pack_length_tokens) if data else 1.0
    speed = assumed_speed(recipe, chosen, gpu=gpu, num_parameters=memory.shape.num_parameters, own=mfu, useful=useful)
    return {
        "prepared": is_prepared,
        "gpu": gpu.name,
        "num_gpus": num_gpus,
        "gpu_memory_gib": gpu.memory_gib,
        "num_parameters": memory.shape.num_parameters,
        "classes": [vars(row) for row in manifest.classes] if manifest else [],
        **(
            {
                **_steps(recipe, manifest, data),
                **_validations(recipe, manifest, num_steps=data.plan.num_steps),
                **_times(
                    data,
                    work,
                    gpu=gpu,
                    num_gpus=num_gpus,
                    packs_per_gpu=per_gpu,
                    mfu=speed.mfu if chosen.fits else None,
                ),
            }
            if manifest and data
            else dict.fromkeys(_UNKNOWN_WITHOUT_DATA)
        ),
        "tokens_per_step": recipe.train.tokens_per_step,
        "bins_per_step": recipe.train.bins_per_step,
        "packs_per_gpu": per_gpu,
        "empty_packs_per_step": per_gpu * num_gpus - recipe.train.bins_per_step,
        "loss_denominator": recipe.train.loss_denominator,
        "mfu_assumed": speed.mfu,
        "mfu_basis": speed.basis,
        "peak_tflops": gpu.peak_flops / 1e12,
        "fits": chosen.fits,
        "problem": None if chosen.fits else str(too_little_memory(chosen, num_gpus=num_gpus)),
        "zero_stage": chosen.zero_stage,
        "activation_checkpointing": chosen.checkpointing_text,
        "packs_per_micro_batch": chosen.packs_per_micro_batch,
        "memory_gib_per_gpu": {
            **{name: _gib(size) for name, size in chosen.parts.items()},
            "total": _gib(chosen.total),
        },
        "settings": [
            {
                "zero_stage": plan.zero_stage,
                "activation_checkpointing": plan.checkpointing_text,
                "packs_per_micro_batch": plan.packs_per_micro_batch,
                "memory_gib": _gib(plan.total),
                "fits": plan.fits,
                "relative_seconds": round(memory.relative_seconds(plan), 3),
                "chosen": plan is chosen,
            }
            for plan in sorted(
                _shown(memory.plans, chosen), key=lambda plan: (plan.zero_stage, plan.packs_per_micro_batch)
            )
        ],
    }


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
    """What a run on such GPUs would choose from, with compiled layers unless the recipe forbids it.

    model: the base, without weights.
    """
    compiled = recipe.model.compile is not False
    costs = StepCosts.of(recipe, compiled=compiled)
    parameters = num_parameters(model, vocab_size)
    shape = model_shape(model.config, vocab_size=vocab_size, num_parameters=parameters, compiled=compiled)
    free_bytes = (gpu_memory_gib - _CONTEXT_GIB) * GIB
    plans = possible_plans(recipe, shape, num_gpus=num_gpus, free_bytes=free_bytes, is_gpu=True)
    return MemoryChoice(shape=shape, plans=plans, chosen=fastest_of(plans, costs), costs=costs)


def _work(model: Any, vocab_size: int) -> Work:
    """The work of a model with rows for `vocab_size` tokens."""
    work = work_of(model)
    added = num_added_rows(model, vocab_size) * model.config.hidden_size
    return replace(work, matmul_parameters=work.matmul_parameters + added)


_UNKNOWN_WITHOUT_DATA = (
    "steps_per_epoch",
    "num_steps",
    "tokens_per_epoch",
    "packing_efficiency",
    "conversations_per_epoch",
    "max_conversations_per_pack",
    "learning_rate",
    "num_validations",
    "validation_time_ratio",
    "seconds_per_step",
    "tokens_per_second",
    "hours",
    "gpu_hours",
)


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


def _steps(recipe: Recipe, manifest: Manifest, data: _TrainingData) -> dict[str, Any]:
    return {
        "steps_per_epoch": data.plan.steps_per_epoch,
        "num_steps": data.plan.num_steps,
        "tokens_per_epoch": data.num_tokens,
        "packing_efficiency": data.plan.packing_efficiency,
        "conversations_per_epoch": data.num_conversations,
        "max_conversations_per_pack": data.plan.max_conversations_per_pack,
        "learning_rate": peak_learning_rate(recipe, manifest),
    }


def _times(
    data: _TrainingData, work: Work, *, gpu: Gpu, num_gpus: int, packs_per_gpu: int, mfu: float | None
) -> dict[str, float | None]:
    """mfu: None where there is no telling; then all times are None."""
    if mfu is None:
        return dict.fromkeys(("seconds_per_step", "tokens_per_second", "hours", "gpu_hours"))
    seconds = step_seconds(work, data.mean_pack, packs_per_gpu=packs_per_gpu, gpu=gpu, mfu=mfu)
    hours = seconds * data.plan.num_steps / 3600
    return {
        "seconds_per_step": seconds,
        "tokens_per_second": float(data.num_tokens / np.mean(data.plan.steps_per_epoch)) / seconds,
        "hours": hours,
        "gpu_hours": hours * num_gpus,
    }


def _validations(recipe: Recipe, manifest: Manifest, *, num_steps: int) -> dict[str, Any]:
    """How often the run validates, and which share of the steps' time that takes (without the answers to prompts)."""
    validator = Validator(recipe, manifest, num_steps=num_steps)
    save_every = recipe.checkpoint.save_every_steps or num_steps
    count = sum(validator.is_due(step, saves=step % save_every == 0) for step in range(1, num_steps + 1))
    return {
        "num_validations": count,
        "validation_time_ratio": time_ratio(
            count, validator.held_out_tokens, tokens_per_step=recipe.train.tokens_per_step, num_steps=num_steps
        ),
    }


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
