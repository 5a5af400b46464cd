"""What DeepSpeed is told."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ochat_train.check.findings import run_checks
from ochat_train.check.model import check_memory
from ochat_train.check.recipe_facts import RecipeFacts
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


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ({"zero_optimization": {"reduce_buckt_size": 5}}, "reduce_buckt_size Extra inputs are not permitted"),
        ({"zero_optimization": {"reduce_bucket_size": [5]}}, "reduce_bucket_size Input should be a valid integer"),
        ({"flops_profiler": 5}, "'int' object"),
        ({"wall_clock_breakdwn": True}, "`wall_clock_breakdwn` is no key of DeepSpeed"),
        ({"flops_profiler": {}, "comms_logger": {}, "wall_clock_breakdown": True}, None),
        ({"zero_optimization": {"reduce_bucket_size": "auto", "sub_group_size": 1e9}, "steps_per_print": 7}, None),
    ],
)
def test_what_deepspeed_does_not_take_is_said_before_a_model_is_loaded(
    raw: dict[str, Any], said: str | None, make_recipe: RecipeFactory
) -> None:
    facts = RecipeFacts(recipe=load_recipe(make_recipe(deepspeed__config=raw)), num_gpus=1, gpu_memory_gib=79.0)
    finding, *_ = run_checks([("memory", lambda: check_memory(facts))])
    assert (finding.level, finding.place) == (
        ("ok", "1 GPU(s) of 79 GiB") if said is None else ("problem", "deepspeed.config")
    )
    assert said is None or said in finding.problem
