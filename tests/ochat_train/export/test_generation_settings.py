"""generation_config.json of an export: what engines stop at and begin with, and nothing that changes greedy answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import transformers

from ochat_train.export.export import export
from ochat_train.inference.served_model import load_served_model
from tests.support.exports import prepared_recipe, random_model, write_run
from tests.support.small_recipe import TINY_MODEL, RecipeFactory


@pytest.mark.parametrize("has_other_ends", [True, False])
def test_engines_find_the_ends_of_answers(has_other_ends: bool, tmp_path: Path, make_recipe: RecipeFactory) -> None:
    """The end of turn first, then control tokens that the base ended with; an ordinary token of its list never ends
    an answer, and its sampling does not become a default.
    """
    recipe = prepared_recipe(make_recipe())
    tokenizer = transformers.AutoTokenizer.from_pretrained(Path(recipe.data.prepared_dir) / "tokenizer")
    end, ordinary = tokenizer.eos_token_id, 7
    assert ordinary not in tokenizer.all_special_ids
    model = random_model(recipe, len(tokenizer), **TINY_MODEL)
    ends = [ordinary, tokenizer.bos_token_id, end] if has_other_ends else ordinary
    model.generation_config = transformers.GenerationConfig(
        eos_token_id=ends, do_sample=True, temperature=0.6, top_p=0.9, repetition_penalty=1.3
    )
    write_run(tmp_path / "run", recipe, model)
    folder = export(tmp_path / "run", tmp_path / "export", step=None, max_shard_size="5GB")
    found = json.loads((folder / "generation_config.json").read_text())
    assert found["eos_token_id"] == ([end, tokenizer.bos_token_id] if has_other_ends else end)
    assert found["do_sample"] is False
    assert (found["pad_token_id"], found["bos_token_id"]) == (tokenizer.pad_token_id, tokenizer.bos_token_id)
    assert tokenizer.pad_token_id == end, "a tokenizer without a padding token of its own"
    assert json.loads((folder / "config.json").read_text())["pad_token_id"] is None, "its row can be trained further"
    assert not {"temperature", "top_p", "top_k", "repetition_penalty"} & found.keys()
    served = load_served_model(folder)
    assert served.stop_ids == ((end, tokenizer.bos_token_id) if has_other_ends else (end,))
    assert (served.name, served.conditions, served.default_condition) == (
        recipe.name, ("GPT4 Correct", "GPT3"), "GPT4 Correct"
    )  # fmt: skip
