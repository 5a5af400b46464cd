"""A run is resumed with the rule of `learning_rate: auto` that it was begun with."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest

from ochat_train.checkpoint.basis import RunBasis
from ochat_train.checkpoint.resume import ResumeDecision
from ochat_train.planning.learning_rate import BOUNDED_RULE, FIRST_RULE
from ochat_train.planning.steps import peak_learning_rate
from ochat_train.recipe.load import load_recipe
from ochat_train.training.prepared_training import Training, with_earlier_rate
from tests.support.small_recipe import RecipeFactory


def training_of(recipe: Any) -> tuple[Training, float]:
    """A training with the rate of a new run, and what the rule without ends gives: half of the tokens supervised."""
    manifest: Any = SimpleNamespace(
        splits={"train": SimpleNamespace(supervised_tokens=500, tokens=1000)}, vocab_size=32_000
    )
    rest: Any = {name: None for name in Training.__dataclass_fields__ if name not in ("recipe", "manifest", "peak")}
    training = Training(recipe=recipe, manifest=manifest, peak=peak_learning_rate(recipe, manifest), **rest)
    return training, 5e-5 * math.sqrt(recipe.train.tokens_per_step / 2 / 4e6)


@pytest.mark.parametrize("rule", [None, BOUNDED_RULE, FIRST_RULE])
def test_the_rate_of_a_resumed_run(rule: int | None, make_recipe: RecipeFactory) -> None:
    """None: the run begins. The rate of the small recipe is far below the end of the rule."""
    training, without_ends = training_of(load_recipe(make_recipe(optimizer={})))
    decision = ResumeDecision(checkpoint=None, learning_rate_rule=rule)
    resumed, basis = with_earlier_rate(training, RunBasis(learning_rate_rule=BOUNDED_RULE), decision)
    assert training.peak.value > 2 * without_ends
    if rule == FIRST_RULE:
        assert resumed.peak.value == pytest.approx(without_ends, rel=1e-14)
        assert basis.learning_rate_rule == FIRST_RULE  # and so do its next checkpoints
    else:
        assert resumed.peak == training.peak
        assert basis.learning_rate_rule == BOUNDED_RULE
