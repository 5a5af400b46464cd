"""What float8 does to the loss and the gradient of a base, before any step: torchao's emulation, on a CPU, no GPU
needed.

    python benchmarks/float8_rounding.py RECIPE [--packs 2] [--set KEY=VALUE ...]

The base of a prepared recipe in float32 is the baseline; beside it bfloat16, float8 with one scale per tensor (as
`model.float8`) or per row, and per tensor but for one kind of projection or the outer layers, which stay in bfloat16.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchao.float8 import Float8LinearConfig, convert_to_float8_training

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data_pipeline.prepared.dataset import PreparedSplit
from ochat_train.model.batch import PackedBatch
from ochat_train.model.build import build_model
from ochat_train.model.structure import decoder_layers
from ochat_train.planning.steps import training_plan
from ochat_train.recipe.load import load_recipe
from ochat_train.recipe.preparation import check_prepared
from ochat_train.recipe.recipe import Recipe
from ochat_train.training.batches import grouped_packs, micro_batches, run_shape

_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
Chosen = Callable[[int, int, str], bool]  # number of a layer, layers in all, name of a linear module: is it float8?


def main() -> None:
    """Compute and print one line a variant."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--packs", type=int, default=2)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    arguments = parser.parse_args()
    recipe = load_recipe(arguments.recipe, arguments.set)
    split = PreparedSplit(Path(recipe.data.prepared_dir), "train")
    plan = training_plan(recipe, split)
    rows = grouped_packs(plan.epoch(0), np.arange(arguments.packs))
    packs = list(micro_batches(split, rows, shape=run_shape(split, plan)))
    per_tensor, per_row = (Float8LinearConfig.from_recipe_name(name) for name in ("tensorwise", "rowwise"))
    variants: dict[str, tuple[Any, Chosen]] = {
        "float8, scale per tensor": (per_tensor, lambda *_: True),
        "float8, scale per row": (per_row, lambda *_: True),
        **{f"per tensor, not {kind}": (per_tensor, lambda *at, kind=kind: kind not in at[2]) for kind in _PROJECTIONS},
        "per tensor, not 2 first layers": (per_tensor, lambda number, *_: number >= 2),
        "per tensor, not 2 last layers": (per_tensor, lambda number, layers, _: number < layers - 2),
    }
    loss, gradient = loss_and_gradient(recipe, packs, "float32", None)
    print(f"{sum(pack.num_tokens for pack in packs):,} tokens, float32: loss {loss:.4f}")
    for name, chosen in {"bfloat16": None, **variants}.items():
        found, other = loss_and_gradient(recipe, packs, "bfloat16", chosen)
        error = float((other - gradient).norm() / gradient.norm())
        print(f"{name:<32} loss {found:.4f}, {found / loss - 1:+.2%}; gradient {error:.1%} away", flush=True)


def loss_and_gradient(
    recipe: Recipe, packs: list[PackedBatch], precision: str, float8: tuple[Any, Chosen] | None
) -> tuple[float, torch.Tensor]:
    """The mean weighted loss of all packs and its gradient, float64, of the untrained base."""
    settings = recipe.model.model_copy(update={"precision": precision})
    model = build_model(settings, check_prepared(recipe), device=torch.device("cpu"), seed=recipe.seed).model
    if float8 is not None:
        config, chosen = float8
        layers = decoder_layers(model.causal_lm)
        for number, layer in enumerate(layers):
            convert_to_float8_training(
                layer,
                config=replace(config, emulate=True),
                module_filter_fn=lambda _, name, number=number: chosen(number, len(layers), name),
            )
    nll, weight = 0.0, 0.0
    for pack in packs:
        sums = model(pack)
        sums.weighted_nll.backward()
        nll, weight = nll + float(sums.per_class[:, 0].sum()), weight + float(sums.per_class[:, 1].sum())
    gradient = torch.cat(
        [parameter.grad.double().flatten() for parameter in model.parameters() if parameter.grad is not None]
    )
    return nll / weight, gradient / weight


if __name__ == "__main__":
    main()
