"""Keys and tokens of the environment or of a recipe are in no byte that a run writes or says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from data_pipeline.errors import UserError
from ochat_train.recipe.load import load_recipe
from tests.support.processes import ochat
from tests.support.small_recipe import RecipeFactory

CANARY = "hf_CANARYcanaryCANARYcanary1234567"
ENVIRONMENT = {name: CANARY for name in ("HF_TOKEN", "WANDB_API_KEY", "OPENAI_API_KEY", "AWS_SECRET_ACCESS_KEY")}


def test_no_byte_of_a_run_holds_a_secret(tmp_path: Path, make_recipe: RecipeFactory) -> None:
    recipe = str(make_recipe(train__max_steps=2, tracking__tensorboard=True, tracking__wandb="offline"))
    run, out = str(tmp_path / "run"), str(tmp_path / "export")
    crash = ["export", str(tmp_path / "nowhere"), "--out", out, "--debug"]
    commands = [["prepare", recipe], ["train", recipe], ["export", run, "--out", out], crash]
    said = [ochat(*command, **ENVIRONMENT) for command in commands]
    assert [finished.returncode for finished in said] == [0, 0, 0, 1], said[-1].stderr
    assert "Traceback" in said[-1].stderr
    assert all(CANARY not in finished.stdout + finished.stderr for finished in said)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 15
    assert [path for path in files if CANARY.encode() in path.read_bytes()] == []


@pytest.mark.parametrize(
    "changes",
    [
        {"tracking__wandb_api_key": CANARY},
        {"deepspeed__config": {"monitor": {"api_key": CANARY}}},
        {"deepspeed__config": {"list": [{"password": CANARY}]}},
        {"model__hf_token": CANARY},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_secret_in_a_recipe_is_refused_and_not_shown(changes: dict[str, Any], make_recipe: RecipeFactory) -> None:
    with pytest.raises(UserError, match="secrets do not belong in a recipe") as caught:
        load_recipe(make_recipe(**changes))
    assert CANARY not in str(caught.value)


def test_names_that_only_look_like_secrets_are_allowed(make_recipe: RecipeFactory) -> None:
    recipe = load_recipe(make_recipe(deepspeed__config={"tokenizer_key": 1, "keys": 2, "token": 3, "eos_token": "x"}))
    assert len(recipe.deepspeed.config) == 4
