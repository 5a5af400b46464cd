"""What DeepSpeed is told."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ochat_train.recipe.load import load_recipe
from ochat_train.training.engine import deepspeed_config
from tests.support.small_recipe import RecipeFactory


@pytest.mark.parametrize(
    ("changes", "prefetched"),
    [
        ({"deepspeed__zero_stage": 3}, 218_112_000),
        (
            {
                "deepspeed__zero_stage": 3,
                "deepspeed__config": {"zero_optimization": {"stage3_prefetch_bucket_size": 5}},
            },
            5,
        ),
        ({"deepspeed__zero_stage": 2}, None),
    ],
)
def test_zero_3_gathers_a_whole_layer_ahead_unless_the_recipe_says_otherwise(
    changes: dict[str, Any], prefetched: int | None, make_recipe: RecipeFactory
) -> None:
    recipe = load_recipe(make_recipe(**changes))
    config = deepspeed_config(
        recipe, num_ranks=2, device=torch.device("cpu"), layer_elements=218_112_000, num_trained=1
    )
    assert config["zero_optimization"].get("stage3_prefetch_bucket_size") == prefetched
