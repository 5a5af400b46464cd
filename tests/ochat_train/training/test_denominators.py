"""What a step's loss is divided by: `step` is OpenChat's trainer, update for update; `epoch` keeps the weights'
meaning.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from data_pipeline.conversation import TokenizedConversation
from data_pipeline.plan.plan import TrainingPlan, deal
from data_pipeline.prepared.dataset import PreparedSplit
from ochat_train.export.trained import load_trained_weights
from ochat_train.model.build import build_model
from ochat_train.planning.steps import training_plan
from ochat_train.recipe.load import load_recipe
from ochat_train.recipe.preparation import check_prepared, prepare_recipe
from ochat_train.recipe.recipe import Recipe
from tests.support.measured import Measured
from tests.support.processes import train_on_ranks
from tests.support.reference import FakeSplit, as_float64, flat, random_conversations, reference_loss, relative_error
from tests.support.run_folder import metrics
from tests.support.small_recipe import TINY_MODEL, RecipeFactory

NUM_RANKS = 2
NUM_STEPS = 12


# ---- `step` against OpenChat's trainer ----


def openchat_schedule(step: int, *, peak: float, num_steps: int, warmup_ratio: float, min_lr_ratio: float) -> float:
    """OpenChat's multiplier of the learning rate, steps counted from 1."""
    num_warmup = round(warmup_ratio * num_steps)
    if step < num_warmup:
        return peak * step / num_warmup
    progress = (step - num_warmup) / (num_steps - num_warmup)
    return peak * (min_lr_ratio + max(0.0, (1 - min_lr_ratio) / 2 * (1 + math.cos(math.pi * progress))))


class Adam:
    """AdamW from its formulas, in float64: decoupled decay, bias-corrected moments."""

    def __init__(self, parameters: list[torch.Tensor], *, betas: list[float], eps: float, decay: float) -> None:
        self.parameters, self.betas, self.eps, self.decay = parameters, betas, eps, decay
        self.moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in parameters]
        self.steps = 0

    @torch.no_grad()
    def update(self, *, learning_rate: float, clip: float) -> None:
        self.steps += 1
        norm = torch.sqrt(sum((p.grad.square().sum() for p in self.parameters), torch.tensor(0.0)))
        for parameter, (first, second) in zip(self.parameters, self.moments, strict=True):
            gradient = parameter.grad * min(1.0, clip / (float(norm) + 1e-6))
            first.mul_(self.betas[0]).add_(gradient, alpha=1 - self.betas[0])
            second.mul_(self.betas[1]).add_(gradient.square(), alpha=1 - self.betas[1])
            mean = first / (1 - self.betas[0] ** self.steps)
            spread = (second / (1 - self.betas[1] ** self.steps)).sqrt() + self.eps
            parameter.mul_(1 - learning_rate * self.decay).sub_(learning_rate * mean / spread)
            parameter.grad = None


def openchat_training(
    causal_lm: Any, recipe: Recipe, split: PreparedSplit, plan: TrainingPlan, *, local: bool
) -> list[float]:
    """OpenChat's loop on `causal_lm` (float64, in place): each rank's loss is world / sum of all weights * its own sum.

    local: the fault of other trainers, each rank divides by the weights it has itself.
    Returns the loss of every step: the weighted mean over all ranks.
    """
    chosen = recipe.optimizer
    assert isinstance(chosen.learning_rate, float)
    adam = Adam(list(causal_lm.parameters()), betas=chosen.betas, eps=chosen.eps, decay=chosen.weight_decay)
    losses = []
    for step in range(plan.num_steps):
        epoch, step_in_epoch = plan.locate(step)
        epoch_plan = plan.epoch(epoch)
        of_ranks = [
            [split[int(row)] for pack in packs for row in epoch_plan.rows(int(pack))]
            for packs in deal(epoch_plan, step_in_epoch, num_ranks=NUM_RANKS)
        ]
        weights = [sum(float(row.loss_weights.sum(dtype=np.float64)) for row in rows) for rows in of_ranks]
        mean_loss = 0.0
        for rows, own_weight in zip(of_ranks, weights, strict=True):
            if not rows:
                continue  # the last step of an epoch has fewer packs
            loss = (1 / own_weight if local else NUM_RANKS / sum(weights)) * reference_loss(causal_lm, rows)
            (loss / NUM_RANKS).backward()  # data parallelism takes the mean of gradients over ranks
            mean_loss += float(loss.detach()) / NUM_RANKS
        learning_rate = openchat_schedule(
            step + 1,
            peak=chosen.learning_rate,
            num_steps=plan.num_steps,
            warmup_ratio=chosen.warmup_ratio,
            min_lr_ratio=chosen.min_lr_ratio,
        )
        adam.update(learning_rate=learning_rate, clip=chosen.grad_clip)
        losses.append(mean_loss)
    return losses


def test_step_is_openchats_trainer_update_for_update(
    tmp_path: Path, make_recipe: RecipeFactory, measured: Measured
) -> None:
    """Two real ranks in float32 against the loop above in float64; the controls are its fault, and `epoch`."""
    path = make_recipe(
        train__loss_denominator="step",
        train__max_steps=NUM_STEPS,
        train__tokens_per_step=512,
        optimizer__eps=1e-5,
        optimizer__warmup_ratio=0.25,
    )
    recipe = load_recipe(path)
    prepare_recipe(recipe, num_workers=1, progress=lambda rows: None)
    train_on_ranks(["train", path], num_ranks=NUM_RANKS)
    [checkpoint] = (tmp_path / "run" / "checkpoints").glob("step-*")
    manifest, split = check_prepared(recipe), PreparedSplit(Path(recipe.data.prepared_dir), "train")
    packed = build_model(recipe.model, manifest, device=torch.device("cpu"), seed=recipe.seed).model
    start = flat(packed.causal_lm.state_dict())
    found = flat(load_trained_weights(checkpoint)) - start
    truth, faulty = as_float64(packed.causal_lm), as_float64(packed.causal_lm)
    losses = openchat_training(truth, recipe, split, training_plan(recipe, split), local=False)
    openchat_training(faulty, recipe, split, training_plan(recipe, split), local=True)
    error = relative_error(found, flat(truth.state_dict()) - start)
    fault = relative_error(found, flat(faulty.state_dict()) - start)
    loss_error = relative_error(
        torch.tensor([line["loss"] for line in metrics(tmp_path / "run")]), torch.tensor(losses)
    )
    measured(f"`step` against OpenChat's loop: way of all weights in {NUM_STEPS} updates", error)
    measured("`step` against OpenChat's loop: losses", loss_error)
    measured("control: `step` against a loop in which each rank divides by its own weights", fault)
    assert len(losses) == NUM_STEPS
    assert loss_error < 1e-6
    assert error < 2e-5
    assert fault > 1e-2


# ---- `epoch` is unbiased, `step` is not ----

NUM_CONVERSATIONS = 40


def conversation_gradients() -> tuple[FakeSplit, torch.Tensor]:
    """Conversations of two classes (weights 1 and 0.1) and the gradient of each one's weighted loss, float64[rows,
    P].
    """
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(**{**TINY_MODEL, "vocab_size": 50})
    causal_lm = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float64, attn_implementation="eager")
    rng = np.random.default_rng(0)
    rows = random_conversations(rng, rng.integers(4, 30, NUM_CONVERSATIONS).tolist(), vocab_size=50, weights=(1.0,))
    class_ids = [int(number >= NUM_CONVERSATIONS // 5) for number in range(NUM_CONVERSATIONS)]
    rows = [scaled(row, (1.0, 0.1)[class_id]) for row, class_id in zip(rows, class_ids, strict=True)]
    gradients = []
    for row in rows:
        causal_lm.zero_grad()
        reference_loss(causal_lm, [row]).backward()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in causal_lm.parameters()]))
    return FakeSplit(rows, class_ids), torch.stack(gradients)


def scaled(row: TokenizedConversation, factor: float) -> TokenizedConversation:
    return TokenizedConversation(input_ids=row.input_ids, loss_weights=row.loss_weights * np.float32(factor))


def summed_gradient(plan: TrainingPlan, gradients: torch.Tensor, step: int) -> torch.Tensor:
    epoch, step_in_epoch = plan.locate(step)
    packs = plan.epoch(epoch).step_packs(step_in_epoch)
    rows = np.concatenate([plan.epoch(epoch).rows(int(pack)) for pack in packs])
    return gradients[torch.from_numpy(rows)].sum(0)


def random_plan(split: Any, seed: int) -> TrainingPlan:
    return TrainingPlan(split, capacity=30, packs_per_step=2, seed=seed, epochs=1, max_steps=None)


def test_epoch_is_unbiased_and_step_is_biased(measured: Measured) -> None:
    """Mean update direction at fixed weights against that of the full data: sum of gradients / sum of weights."""
    split, gradients = conversation_gradients()
    full = gradients.sum(0) / split.weight_sum.sum()
    plan = random_plan(split, seed=0)
    steps = range(plan.num_steps)
    directions = [summed_gradient(plan, gradients, step) / plan.denominator(step, "epoch") for step in steps]
    over_epoch = torch.stack(directions).mean(0)
    measured("`epoch`: mean direction of one epoch's steps against the full data", relative_error(over_epoch, full))
    assert relative_error(over_epoch, full) < 1e-12

    rng = np.random.default_rng(0)
    draws: dict[str, list[torch.Tensor]] = {"epoch": [], "step": []}
    for seed in range(3_200):  # one step of a random plan each
        plan = random_plan(split, seed)
        step = int(rng.integers(plan.num_steps))
        total = summed_gradient(plan, gradients, step)
        for kind, drawn in draws.items():
            drawn.append(total / plan.denominator(step, kind))
    bias = {kind: [relative_error(torch.stack(d[:n]).mean(0), full) for n in (50, 3_200)] for kind, d in draws.items()}
    for kind, (few, many) in bias.items():
        measured(f"`{kind}`: mean direction of 50 random steps against the full data", few)
        measured(f"`{kind}`: mean direction of 3,200 random steps against the full data", many)
    assert bias["epoch"][1] < bias["epoch"][0] / 4  # 64 times the steps: an eighth is expected
    assert bias["epoch"][1] < 0.1
    assert bias["step"][1] > 0.2


@pytest.mark.parametrize(("num_conversations", "expected"), [(1, 1.0), (4, 0.30), (16, 0.14), (64, 0.109)])
def test_effective_weight_of_the_suboptimal_class(num_conversations: int, expected: float, measured: Measured) -> None:
    """Weights 1 and 0.1, 6 of 70 conversations expert: how much a suboptimal one counts in an update, against an expert
    one.

    The figures of `step` are the binomial expectation; `epoch` gives 0.1 whatever the size of a step.
    """
    weights = np.where(np.arange(700) < 60, 1.0, 0.1)
    split: Any = FakeSplit([], [])
    split.num_tokens, split.weight_sum = np.full(700, 8), weights
    plan = TrainingPlan(
        split,
        capacity=8,
        packs_per_step=num_conversations,
        seed=0,
        epochs=min(200, 10 * num_conversations),
        max_steps=None,
    )
    ratios = {}
    for kind in ("step", "epoch"):
        shares = np.zeros(700)  # of the updates' weight that each conversation had, over all epochs
        for step in range(plan.num_steps):
            epoch, step_in_epoch = plan.locate(step)
            rows = [int(plan.epoch(epoch).rows(int(pack))[0]) for pack in plan.epoch(epoch).step_packs(step_in_epoch)]
            shares[rows] += weights[rows] / plan.denominator(step, kind)
        ratios[kind] = float(shares[60:].mean() / shares[:60].mean())
        measured(
            f"effective weight of the 0.1 class under `{kind}`, {num_conversations:2d} conversations a step",
            ratios[kind],
        )
    assert ratios["step"] == pytest.approx(expected_ratio(num_conversations), rel=0.02)
    assert ratios["step"] == pytest.approx(expected, abs=0.006)
    assert ratios["epoch"] == pytest.approx(0.1, rel=1e-3)


def expected_ratio(num_conversations: int) -> float:
    """E[0.1 / sum | one is suboptimal] / E[1 / sum | one is expert], the others drawn with 6/70 experts."""
    others = num_conversations - 1
    shares = {0.1: 0.0, 1.0: 0.0}
    for experts in range(others + 1):
        probability = math.comb(others, experts) * (6 / 70) ** experts * (64 / 70) ** (others - experts)
        for weight in shares:
            shares[weight] += probability * weight / (weight + experts + 0.1 * (others - experts))
    return shares[0.1] / shares[1.0]
