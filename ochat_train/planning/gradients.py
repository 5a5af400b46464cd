"""How the engine adds up and reduces gradients, as far as it decides memory: facts that planner and engine share."""

from __future__ import annotations

from data_pipeline.plan.plan import num_micro_batches
from ochat_train.recipe.recipe import Recipe

GROUP_ELEMENTS = 500_000_000  # parameters that the optimizer updates at once
_BUCKET_ELEMENTS = 200_000_000


def bucket_elements(num_trained: int) -> int:
    """Gradients that DeepSpeed reduces over GPUs at once, in buffers of this size: an adapter's are few."""
    return min(_BUCKET_ELEMENTS, num_trained)


def num_backwards(recipe: Recipe, *, num_gpus: int, packs_per_micro_batch: int) -> int:
    """Micro-batches, and so backward passes, of each GPU in a step. packs_per_micro_batch divides a GPU's packs."""
    return num_micro_batches(recipe.train.packs_per_step, num_gpus) // packs_per_micro_batch


def adds_up_gradients(recipe: Recipe, *, num_gpus: int, packs_per_micro_batch: int) -> bool:
    """Whether a step has several micro-batches."""
    return num_backwards(recipe, num_gpus=num_gpus, packs_per_micro_batch=packs_per_micro_batch) > 1


def dtype_of_sums(recipe: Recipe, zero_stage: int, *, adds_up: bool) -> str:
    """Dtype in which gradients are added up: `float32` or `bfloat16`.

    A bfloat16 model adds up as the recipe says, but in float32 where bfloat16 takes as many bytes.
    adds_up: whether a step has several micro-batches.
    """
    if recipe.model.precision == "float32" or _is_kept_twice(recipe, zero_stage, adds_up=adds_up):
        return "float32"
    return recipe.train.gradient_dtype


def gradient_bytes(recipe: Recipe, zero_stage: int, *, adds_up: bool) -> int:
    """Bytes of gradients for each parameter, before they are sharded over GPUs."""
    if recipe.model.precision == "float32":
        return 8 if _is_kept_twice(recipe, zero_stage, adds_up=adds_up) else 4
    one_gradient = zero_stage <= 1 and not adds_up
    return 2 if one_gradient or dtype_of_sums(recipe, zero_stage, adds_up=adds_up) == "bfloat16" else 4


def _is_kept_twice(recipe: Recipe, zero_stage: int, *, adds_up: bool) -> bool:
    """Whether DeepSpeed keeps the micro-batch's gradient beside a sum that has the model's dtype."""
    return zero_stage == 2 and adds_up and not recipe.deepspeed.offload_optimizer
