"""A memory plan in words: at the start of a run, and where it did not fit."""

from __future__ import annotations

from data_pipeline.errors import UserError
from ochat_train.planning.memory import MemoryPlan
from ochat_train.planning.memory_parts import MemoryParts
from ochat_train.system.exits import OneRankError
from ochat_train.system.sizes import GIB


def parts_text(parts: MemoryParts) -> str:
    """Parts in GiB, for a message."""
    return ", ".join(f"{name} {size / GIB:.1f}" for name, size in parts.items())


def memory_text(plan: MemoryPlan) -> str:
    """One line about the plan, for the start of a run."""
    return (
        f"memory per GPU {plan.total / GIB:.1f} GiB ({parts_text(plan.parts)}): activation_checkpointing "
        f"{plan.checkpointing_text}, {plan.packs_per_micro_batch} pack(s) per micro-batch, gradients in "
        f"{plan.sum_dtype}, optimizer.states {plan.states}{f', {plan.adapter}' if plan.adapter else ''}"
        f"{'' if plan.fits else '; computed to be more than is free'}"
    )


def too_little_memory(plan: MemoryPlan, *, num_gpus: int) -> UserError:
    """The error for a recipe whose smallest setting, `plan`, does not fit."""
    remedies = [*_of_the_setting(plan, num_gpus=num_gpus), *_remedies(plan)]
    return UserError(
        "GPU memory",
        f"the least that this recipe needs on {num_gpus} GPU(s) is {plan.total / GIB:.1f} GiB each "
        f"({parts_text(plan.parts)}), more than is free",
        f"use {', '.join(remedies[:-1])} or {remedies[-1]}",
    )


def _of_the_setting(plan: MemoryPlan, *, num_gpus: int) -> list[str]:
    """Decisions of the recipe that keep the smallest setting from being smaller."""
    found = []
    if plan.packs_per_micro_batch > 1:
        found.append("train.packs_per_micro_batch: 1")
    if plan.checkpointing_is_set and set(plan.checkpointing) != {"full"}:
        found.append("model.activation_checkpointing: full")
    if plan.zero_stage < 3 and num_gpus > 1 and plan.adapter != "qlora":
        found.append("deepspeed.zero_stage: 3")
    return found


def _remedies(plan: MemoryPlan) -> list[str]:
    """What needs less memory than the smallest setting. An adapter has few gradients and states to save on."""
    shorter = "a shorter train.pack_length_tokens"
    if plan.adapter == "qlora":
        return ["GPUs with more memory (each holds the whole base)", shorter]
    if plan.adapter is not None:
        return ["more GPUs", "adapter.type: qlora", shorter]
    remedies = ["more GPUs"]
    if plan.states != "8bit" and not plan.offloaded:  # no states are on the GPU then, and the two exclude each other
        remedies.append("optimizer.states: 8bit")
    if plan.states == "float32" and not plan.offloaded:
        remedies.append("deepspeed.offload_optimizer: true")
    if plan.sum_dtype != "bfloat16":
        remedies.append("train.gradient_dtype: bfloat16")
    return [*remedies, shorter, "an adapter (adapter.type: lora)"]


def out_of_memory(plan: MemoryPlan, error: BaseException) -> OneRankError:
    """The error for a rank that ran out of memory. error: torch's."""
    return OneRankError(
        "GPU memory",
        f"more was needed than the {plan.total / GIB:.1f} GiB planned ({parts_text(plan.parts)})",
        f"next safer: {_safer(plan)}, and start again ({str(error).splitlines()[0][:300]})",
    )


def _safer(plan: MemoryPlan) -> str:
    """The setting to try next, as a recipe writes it."""
    num, num_full = len(plan.checkpointing), plan.checkpointing.count("full")
    if plan.packs_per_micro_batch > 1:
        return "train.packs_per_micro_batch: 1"
    if num_full < num:
        more = min(num, num_full + max(1, num // 8))
        return "model.activation_checkpointing: " + ("full" if more == num else f"{{layers: {more}}}")
    if plan.adapter == "qlora":
        return "a shorter train.pack_length_tokens"
    if plan.zero_stage < 3:
        return f"deepspeed.zero_stage: {plan.zero_stage + 1}"
    if plan.adapter is not None:
        return "adapter.type: qlora, or more GPUs"
    can_offload = plan.states == "float32" and not plan.offloaded
    return "deepspeed.offload_optimizer: true, or more GPUs" if can_offload else "more GPUs"
