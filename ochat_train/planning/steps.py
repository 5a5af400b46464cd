"""The steps of a run and its peak learning rate, as the run and `ochat plan` both see them."""

from __future__ import annotations

from typing import Any

from data_pipeline.plan.plan import TrainingPlan
from data_pipeline.prepared.dataset import Manifest, PreparedSplit
from ochat_train.model.config import load_base_config
from ochat_train.planning.learning_rate import BOUNDED_RULE, PeakLearningRate, auto_adapter_rate, auto_learning_rate
from ochat_train.recipe.recipe import Recipe


def training_plan(recipe: Recipe, split: PreparedSplit) -> TrainingPlan:
    """The plan of a whole run."""
    return TrainingPlan(
        split,
        capacity=recipe.train.pack_length_tokens,
        packs_per_step=recipe.train.packs_per_step,
        seed=recipe.seed,
        epochs=recipe.train.epochs,
        max_steps=recipe.train.max_steps,
        kind=recipe.train.plan,
    )


def peak_learning_rate(recipe: Recipe, manifest: Manifest, *, rule: int = BOUNDED_RULE) -> PeakLearningRate:
    """The recipe's learning rate, or for `auto` what the rule of adapters or that of the base's family gives.

    rule: as for `auto_learning_rate`.
    """
    if isinstance(recipe.optimizer.learning_rate, float):
        return PeakLearningRate(value=recipe.optimizer.learning_rate)
    config = load_base_config(recipe.model, manifest.vocab_size)
    tokens = supervised_tokens_per_step(recipe, manifest)
    return automatic_rate(config, supervised_tokens_per_step=tokens, with_adapter=recipe.adapter is not None, rule=rule)


def supervised_tokens_per_step(recipe: Recipe, manifest: Manifest) -> float:
    """How many tokens of a full step are learned from, by the share that they have in the whole training split."""
    counts = manifest.splits["train"]
    return recipe.train.tokens_per_step * (counts.supervised_tokens / counts.tokens)


def automatic_rate(
    config: Any, *, supervised_tokens_per_step: float, with_adapter: bool = False, rule: int = BOUNDED_RULE
) -> PeakLearningRate:
    """What `auto` gives for a base. config: of `transformers`; the width is that of the part that reads text.

    with_adapter: whether an adapter is trained, whose rule does not depend on the step's tokens.
    """
    text = config.get_text_config(decoder=True)
    hidden_size = getattr(text, "hidden_size", None)
    if with_adapter:
        return auto_adapter_rate(model_type=config.model_type, hidden_size=hidden_size)
    return auto_learning_rate(
        model_type=config.model_type,
        vocab_size=getattr(text, "vocab_size", None),
        hidden_size=hidden_size,
        supervised_tokens_per_step=supervised_tokens_per_step,
        rule=rule,
    )
