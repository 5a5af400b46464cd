"""A training refuses a disk without room in the words of `ochat check`."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from data_pipeline.errors import UserError
from ochat_train.check.disk import check_disk
from ochat_train.check.recipe_facts import RecipeFacts
from ochat_train.checkpoint.state import MANIFEST
from ochat_train.model.config import load_base_config, model_without_weights
from ochat_train.recipe.load import load_recipe
from ochat_train.recipe.preparation import prepare_recipe
from ochat_train.training.disk_room import require_room
from tests.support.small_recipe import RecipeFactory


def set_free(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: type("Usage", (), {"free": free}))


def test_it_needs_what_check_says(make_recipe: RecipeFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_recipe(make_recipe(checkpoint={"save_every_steps": 2, "keep_last": 3}))
    prepare_recipe(recipe, num_workers=1, progress=lambda rows: None)
    facts = RecipeFacts(recipe=recipe, num_gpus=1, gpu_memory_gib=79.0)
    causal_lm = model_without_weights(load_base_config(recipe.model, facts.vocab_size))
    arguments = {"num_steps": facts.num_steps, "zero_stage": facts.memory.zero_stage, "num_ranks": 1}
    set_free(monkeypatch, 1000)
    [finding] = check_disk(facts)
    for resume in ("auto", "never"):
        with pytest.raises(UserError) as caught:
            require_room(recipe, causal_lm, resume=resume, **arguments)
        [problem] = caught.value.problems
        assert (problem.place, problem.problem, problem.remedy) == (finding.place, finding.problem, finding.remedy)
    set_free(monkeypatch, 10**12)
    require_room(recipe, causal_lm, resume="auto", **arguments)


def test_a_complete_run_needs_none(make_recipe: RecipeFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_recipe(make_recipe())
    causal_lm = model_without_weights(load_base_config(recipe.model, 300))
    set_free(monkeypatch, 1000)
    folder = Path(recipe.output_dir, "checkpoints", "step-00000004")
    folder.mkdir(parents=True)
    (folder / MANIFEST).touch()
    arguments = {"zero_stage": 2, "num_ranks": 1}
    require_room(recipe, causal_lm, num_steps=4, resume="auto", **arguments)
    for num_steps, resume in ((4, "never"), (5, "auto")):
        with pytest.raises(UserError, match=r"0\.0 MiB free"):
            require_room(recipe, causal_lm, num_steps=num_steps, resume=resume, **arguments)
