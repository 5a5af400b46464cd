"""One rank: the full gradient of a recipe's first step, for several ZeRO stages one after the other.

    python -m tests.support.gradient_worker RECIPE OUT_DIR CASE...

A CASE is `ZERO_STAGE` or `ZERO_STAGE:reversed` (each rank works on its packs in the opposite order). Rank 0 writes
OUT_DIR/CASE.safetensors: the gradient by parameter name, float32, before clipping.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from deepspeed.utils import safe_get_full_grad
from safetensors.torch import save_file

from data_pipeline.plan.plan import deal
from data_pipeline.prepared.dataset import PreparedSplit
from ochat_train.distributed.ranks import start_ranks, stop_ranks
from ochat_train.model.build import build_model, set_up_layers
from ochat_train.planning.memory import resolve
from ochat_train.planning.steps import training_plan
from ochat_train.recipe.load import load_recipe
from ochat_train.recipe.preparation import check_prepared
from ochat_train.training.batches import grouped_packs, micro_batches, run_shape, tokens_per_class
from ochat_train.training.engine import start_engine
from ochat_train.training.memory_plan import plan_memory
from ochat_train.training.step import accumulate_gradients


def first_gradient(recipe_path: Path, case: str) -> dict[str, torch.Tensor]:
    stage, _, order = case.partition(":")
    recipe = load_recipe(recipe_path, [f"deepspeed.zero_stage={stage}"])
    manifest = check_prepared(recipe)
    split = PreparedSplit(Path(recipe.data.prepared_dir), "train")
    plan = training_plan(recipe, split)
    model, kernel, *_ = build_model(recipe.model, manifest, device=RANKS.device, seed=recipe.seed)
    memory, compiled = plan_memory(recipe, model.causal_lm, RANKS, kernel=kernel)
    recipe = resolve(recipe, memory, compiled=compiled)
    set_up_layers(model, recipe, checkpointing=memory.checkpointing, device=RANKS.device)
    engine = start_engine(model, recipe, RANKS)
    numbers = deal(plan.epoch(0), 0, num_ranks=RANKS.num_ranks)[RANKS.rank]
    packs = grouped_packs(
        plan.epoch(0),
        numbers[::-1] if order else numbers,
        packs_per_micro_batch=recipe.train.packs_per_micro_batch or 1,
    )
    accumulate_gradients(
        engine,
        micro_batches(split, packs, shape=run_shape(split, plan)),
        denominator=plan.denominator(0, recipe.train.loss_denominator),
        num_ranks=RANKS.num_ranks,
        num_step_tokens=sum(tokens_per_class(split, plan.epoch(0).step_rows(0), num_classes=len(manifest.classes))),
    )
    found = {}
    for name, parameter in engine.module.named_parameters():
        gradient = parameter.grad if stage == "0" else safe_get_full_grad(parameter)
        found[name.removeprefix("causal_lm.")] = gradient.detach().float().cpu().clone()
    return found


if __name__ == "__main__":
    recipe_path, out_dir, cases = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
    RANKS = start_ranks()
    for case in cases:
        gradient = first_gradient(recipe_path, case)
        if RANKS.is_main:
            save_file(gradient, str(out_dir / f"{RANKS.num_ranks} ranks {case}.safetensors"))
    stop_ranks()
