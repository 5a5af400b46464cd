"""Building the model of a recipe: which bases are refused, which kernel is taken, what is compiled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from data_pipeline.errors import UserError
from ochat_train.model.build import build_model, is_compiled
from ochat_train.model.weights.token_rows import ControlTokens
from ochat_train.recipe.load import load_recipe
from ochat_train.recipe.preparation import prepare_recipe
from tests.support.small_recipe import TINY_MODEL, RecipeFactory

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


def test_the_base_and_the_kernel_that_it_calls(make_recipe: RecipeFactory) -> None:
    recipe = load_recipe(make_recipe())
    manifest, _ = prepare_recipe(recipe, num_workers=1, progress=lambda rows: None)
    built = build_model(recipe.model, manifest, device=CPU, seed=3)
    again = build_model(recipe.model, manifest, device=CPU, seed=3)
    other = build_model(recipe.model, manifest, device=CPU, seed=4)
    heads = [found.model.loss.head_weight for found in (built, again, other)]
    assert built.kernel == "sdpa"
    assert len(heads[0]) == manifest.vocab_size
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])
    assert built.model.training


def test_random_weights_need_a_row_for_every_piece_of_the_tokenizer(make_recipe: RecipeFactory) -> None:
    """Otherwise all that are missing would start as one and the same row. Only added tokens get theirs."""
    recipe = load_recipe(make_recipe())
    manifest, _ = prepare_recipe(recipe, num_workers=1, progress=lambda rows: None)
    control = ControlTokens.of_prepared(Path(recipe.data.prepared_dir), manifest)
    assert control.num_piece_rows < manifest.vocab_size
    for num_rows in (control.num_piece_rows, control.num_piece_rows - 1):
        settings = recipe.model.model_copy(update={"config": {**TINY_MODEL, "vocab_size": num_rows}})
        if num_rows == control.num_piece_rows:
            built = build_model(settings, manifest, device=CPU, seed=0, control=control)
            assert len(built.model.loss.head_weight) == manifest.vocab_size
        else:
            with pytest.raises(UserError, match=r"model\.config: has rows for .* leave `vocab_size` out"):
                build_model(settings, manifest, device=CPU, seed=0, control=control)


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ({"model_type": "nemotron"}, "does not pass `cu_seqlens`"),
        ({"model_type": "bloom"}, "takes no `position_ids`"),
    ],
)
def test_bases_that_would_be_trained_wrongly_are_refused(
    config: dict[str, Any], problem: str, make_recipe: RecipeFactory
) -> None:
    shapes = {name: value for name, value in TINY_MODEL.items() if name not in ("model_type", "sliding_window")}
    recipe = load_recipe(make_recipe(model__config={**shapes, **config}))
    manifest, _ = prepare_recipe(recipe, num_workers=1, progress=lambda rows: None)
    with pytest.raises(UserError) as caught:
        build_model(recipe.model, manifest, device=CPU, seed=0)
    assert problem in caught.value.problem
    assert caught.value.remedy.startswith("use another base")


@pytest.mark.parametrize(
    ("setting", "kernel", "device", "compiled"),
    [
        (None, "flash_attention_4", GPU, True),
        (None, "varlen", CPU, False),
        (None, "flex", GPU, False),
        (None, "sdpa", GPU, False),
        (False, "varlen", GPU, False),
        (True, "flash_attention_2", GPU, True),
    ],
)
def test_layers_are_compiled_on_a_gpu_with_a_kernel_that_allows_it(
    setting: bool | None, kernel: str, device: torch.device, compiled: bool, make_recipe: RecipeFactory
) -> None:
    settings = load_recipe(make_recipe()).model.model_copy(update={"compile": setting})
    assert is_compiled(settings, kernel=kernel, device=device) is compiled


def test_compiling_around_another_kernel_is_refused(make_recipe: RecipeFactory) -> None:
    settings = load_recipe(make_recipe()).model.model_copy(update={"compile": True})
    fit = "flash_attention_2, flash_attention_3, flash_attention_4, varlen"
    with pytest.raises(UserError, match=f"model.compile: true cannot be used with .* `sdpa`; kernels that fit: {fit}$"):
        is_compiled(settings, kernel="sdpa", device=GPU)
