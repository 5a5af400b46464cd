"""Mixtures of experts and hybrids in a run: the same step on any number of ranks, metrics, and resuming."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from data_pipeline.prepared.dataset import PreparedSplit
from ochat_train.model.batch import pack_batch
from ochat_train.model.build import build_model
from ochat_train.planning.steps import training_plan
from ochat_train.recipe.load import load_recipe
from ochat_train.recipe.preparation import check_prepared, prepare_recipe
from ochat_train.recipe.recipe import Recipe
from ochat_train.runs.lines import EXPERTS_FILE, read_lines
from ochat_train.runs.metrics import ExpertMeans, StepMetrics
from ochat_train.tracking.scalars import step_scalars
from ochat_train.training.batches import run_shape
from ochat_train.training.metrics import ExpertTable, expert_means
from ochat_train.training.outputs import MetricsWriter
from ochat_train.training.step import ExpertSums
from tests.support.disturbed_runs import first_gradients
from tests.support.hybrids import hybrid_config
from tests.support.measured import Measured
from tests.support.reference import flat, relative_error
from tests.support.results import step_metrics
from tests.support.small_recipe import RecipeFactory


def test_a_hybrid_with_experts_takes_the_same_step_on_any_ranks(
    tmp_path: Path, make_recipe: RecipeFactory, measured: Measured
) -> None:
    """Gated delta nets, each conversation alone, a router loss and ZeRO 3, where layers are gathered together.

    The control is the step without the router loss.
    """
    config = hybrid_config("qwen3_next", num_hidden_layers=2, layer_types=["linear_attention", "full_attention"])
    path = make_recipe(model__config=config, model__router_aux_loss=1.0)
    recipe = load_recipe(path)
    prepare_recipe(recipe, num_workers=1, progress=lambda rows: None)
    expected, without_router_loss = (one_process_gradient(recipe, with_router_loss=wanted) for wanted in (True, False))
    for case, gradient in first_gradients(path, tmp_path, ["1", "3"], num_ranks=2).items():
        error = relative_error(flat(gradient), expected)
        measured("gradient of a hybrid with a router loss on two ranks, ZeRO 1 and 3, against one process", error)
        assert error < 1e-5, case
    assert relative_error(without_router_loss, expected) > 1e-3


def one_process_gradient(recipe: Recipe, *, with_router_loss: bool) -> torch.Tensor:
    """Gradient of the first step, without DeepSpeed: sums over its packs, divided once."""
    manifest, split = check_prepared(recipe), PreparedSplit(Path(recipe.data.prepared_dir), "train")
    model = build_model(recipe.model, manifest, device=torch.device("cpu"), seed=recipe.seed).model
    plan = training_plan(recipe, split)
    epoch = plan.epoch(0)
    packs = [pack_batch(split, epoch.rows(int(pack)), run_shape(split, plan)) for pack in epoch.step_packs(0)]
    num_tokens = sum(pack.num_tokens for pack in packs)
    for pack in packs:
        sums = model(pack)
        loss = sums.weighted_nll / plan.denominator(0, "epoch")
        (loss + sums.router_loss / num_tokens if with_router_loss else loss).backward()
    return flat({name: parameter.grad for name, parameter in model.causal_lm.named_parameters()})


# ---- metrics ----


def sums(counts: list[list[int]] | None, router_loss: float | None = None) -> ExpertSums:
    return ExpertSums(router_loss=router_loss, counts_LE=None if counts is None else torch.tensor(counts))


def test_shares_of_a_step() -> None:
    found = expert_means(sums([[30, 10, 60], [0, 50, 50]], router_loss=20.0), num_tokens=100)
    assert found == ExpertMeans(router_aux_loss=0.2, least_share=0.0, most_share=0.6, unused_experts=1)
    assert expert_means(sums(None), num_tokens=100) is None
    only_loss = expert_means(sums(None, router_loss=float("nan")), num_tokens=100)
    assert only_loss == ExpertMeans(router_aux_loss=None, least_share=None, most_share=None, unused_experts=None)


def test_a_line_of_metrics_has_the_experts_of_a_mixture_only() -> None:
    dense = step_metrics(3, classes=["a"])
    assert "experts" not in dense.to_json()
    assert StepMetrics.from_json(dense.to_json()) == dense
    experts = ExpertMeans(router_aux_loss=0.2, least_share=0.1, most_share=0.6, unused_experts=1)
    mixture = StepMetrics(**{**vars(dense), "experts": experts})
    assert StepMetrics.from_json(mixture.to_json()) == mixture
    assert step_scalars(mixture)["train/experts/most_share"] == 0.6


def test_the_table_adds_up_the_steps_between_two_lines(tmp_path: Path) -> None:
    table = ExpertTable(first_step=4)
    table.add(sums([[1, 3]]))
    table.add(sums([[3, 1]]))
    first = table.take()
    table.add(sums([[0, 2]]))
    second = table.take()
    assert first is not None
    assert second is not None
    assert first.to_json() == {"step": 6, "first_step": 5, "layers": [[0.5, 0.5]]}
    assert second.to_json() == {"step": 7, "first_step": 7, "layers": [[0.0, 1.0]]}
    assert table.take() is None
    trackers: Any = SimpleNamespace()
    for first_step, steps in ((0, [first, second]), (6, [second])):  # resumed after step 6, which the file is cut to
        writer = MetricsWriter(tmp_path, trackers, first_step=first_step)
        assert (tmp_path / EXPERTS_FILE).is_file() == bool(first_step)
        for shares in steps:
            writer.write_experts(shares)
        assert [row["step"] for row in read_lines(tmp_path / EXPERTS_FILE)] == [6, 7]
