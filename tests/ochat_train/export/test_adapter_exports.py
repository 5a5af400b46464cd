"""Exports of runs with an adapter: merged into the base, or as a folder that PEFT loads."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from data_pipeline.prepared.dataset import Manifest
from ochat_train.export.export import export
from ochat_train.export.verify import logits_of
from ochat_train.inference.generate import load_generator
from ochat_train.recipe.load import load_recipe
from ochat_train.recipe.preparation import prepare_recipe
from ochat_train.recipe.sections import Recipe
from ochat_train.runs.folder import read_run_folder
from tests.support.adapted_runs import write_adapted_run, write_base
from tests.support.small_recipe import RecipeFactory

Adapted = Callable[..., tuple[Path, Any]]


@pytest.fixture
def adapted(tmp_path: Path, make_recipe: RecipeFactory, small_tokenizer_dir: Path) -> Adapted:
    """Makes a run with an adapter: its folder, and the model that it trained. The base lacks the template's token."""

    def run(*, dtype: torch.dtype = torch.float32, base: dict[str, Any] | None = None, **adapter: Any) -> Any:
        model = {
            "path": str(tmp_path / "base"),
            "tokenizer": str(small_tokenizer_dir),
            "template": "openchat_3.5",
            "max_length_tokens": 256,
        }
        recipe = load_recipe(make_recipe(model=model, adapter={"type": "lora", "rank": 4, **adapter}))
        rows = _prepared(recipe, tmp_path, base or {})
        assert rows
        _, trained = write_adapted_run(tmp_path / "run", recipe, dtype=dtype)
        return tmp_path / "run", trained

    return run


def _prepared(recipe: Recipe, folder: Path, base: dict[str, Any]) -> int:
    """Write a base with two rows less than the tokenizer of the recipe has with its template; prepare the data."""
    write_base(folder / "base", num_rows=100, **base)
    prepare_recipe(recipe, num_workers=1, progress=lambda rows: None)
    manifest = Manifest.load(Path(recipe.data.prepared_dir))
    assert manifest is not None
    write_base(folder / "base", num_rows=manifest.vocab_size - 2, **base)
    return manifest.vocab_size


FORMS: dict[str, dict[str, Any]] = {
    "lora": {},
    "rslora, some targets": {"rslora": True, "targets": ["q_proj", "down_proj"]},
    "dora": {"dora": True},
    "tied": {"base": {"tie_word_embeddings": True}},
    "qlora": {"type": "qlora"},
}


@pytest.mark.parametrize("form", FORMS)
def test_merged_and_adapter_give_the_logits_of_training(form: str, adapted: Adapted, tmp_path: Path) -> None:
    run_dir, trained = adapted(**FORMS[form])
    run = read_run_folder(run_dir)
    with torch.no_grad():
        expected = logits_of(run, trained)
    scale = max(float(logits.abs().max()) for logits in expected)
    merged = export(run_dir, tmp_path / "merged", step=None, max_shard_size="5GB")
    mark = json.loads((merged / "ochat.json").read_text())
    assert mark["adapter"]["merged"]
    assert mark["adapter"]["logits"]["equal"] < 1e-5
    whole = transformers.AutoModelForCausalLM.from_pretrained(merged)
    folder = export(run_dir, tmp_path / "adapter", step=None, max_shard_size="5GB", adapter=True)
    loaded = [logits_of(run, whole)]
    if form != "qlora":  # PEFT does not know that the base was quantised
        import peft

        loaded.append(logits_of(run, peft.AutoPeftModelForCausalLM.from_pretrained(folder)))
    loaded.append(logits_of(run, load_generator(folder)._model))
    for found in loaded:
        assert max(float((a - b).abs().max()) for a, b in zip(expected, found, strict=True)) < 1e-5 * scale
