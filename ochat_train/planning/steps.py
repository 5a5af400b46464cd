"""The steps of a run and its peak learning rate, as the run and `ochat plan` both see them."""

from __future__ import annotations

from data_pipeline.plan.plan import TrainingPlan
from data_pipeline.prepared.dataset import Manifest, PreparedSplit
from ochat_train.model.config import load_base_config
from ochat_train.planning.learning_rate import auto_learning_rate
from ochat_train.recipe.sections import Recipe


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
    supervised_ratio = counts.supervised_tokens / counts.tokens
    config = load_base_config(recipe.model, manifest.vocab_size)
    return auto_learning_rate(
        model_type=config.model_type,
        vocab_size=config.vocab_size,
        supervised_tokens_per_step=recipe.train.tokens_per_step * supervised_ratio,
    )
