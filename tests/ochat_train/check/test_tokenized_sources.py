"""`ochat check` reads the files of OpenChat's generate_dataset as `ochat prepare` does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ochat_train.check.facts import Facts, SourceSample

from ochat_train.recipe.load import load_recipe
from ochat_train.recipe.preparation import prepare_recipe
from tests.support.openchat_writer import OpenChatWriter, write_parquet
from tests.support.rows import write_jsonl
from tests.support.small_recipe import RecipeFactory

REWARDS = {"expert": {"condition": "GPT4 Correct", "reward": 1.0}, "suboptimal": {"condition": "GPT3", "reward": 0.0}}


def tokenized_source(folder: Path, tokenizer_dir: Path, *, wrong_rows: int) -> dict[str, Any]:
    """Ten rows with the weights that REWARDS give, and some with others."""
    rows = []
    for number in range(10 + wrong_rows):
        condition, weight = (("GPT4 Correct", 1.0), ("GPT3", 0.1))[number % 2]
        answer = {"role": "assistant", "content": f"Answer {number}", "weight": weight if number < 10 else 0.7}
        rows.append({"items": [{"role": "user", "content": "Hi", "weight": 0.0}, answer], "condition": condition})
    written = OpenChatWriter(tokenizer_dir, "openchat_3.6", bos="<s>").rows(rows)
    path = write_parquet(folder / "openchat.parquet", written, metadata={"model_type": "openchat_3.6"})
    return {"path": str(path), "format": "openchat_tokenized"}


def samples(recipe: Path) -> list[SourceSample]:
    facts = Facts(recipe=load_recipe(recipe), num_gpus=1, gpu_memory_gib=80.0)
    found = [sample for _, sample in facts.samples()]
    assert all(isinstance(sample, SourceSample) for sample in found)
    return [sample for sample in found if isinstance(sample, SourceSample)]


@pytest.mark.parametrize("wrong_rows", [0, 3])
def test_weights_are_compared_with_the_rewards_of_the_recipe(
    wrong_rows: int, make_recipe: RecipeFactory, tmp_path: Path, small_tokenizer_dir: Path
) -> None:
    source = tokenized_source(tmp_path, small_tokenizer_dir, wrong_rows=wrong_rows)
    path = make_recipe(model__template="openchat_3.6", data__sources=[source], data__bad_rows="drop")
    [sample] = samples(path)
    manifest, _ = prepare_recipe(load_recipe(path), num_workers=1, progress=lambda rows: None)
    assert dict(sample.ledger.dropped) == manifest.ledger.dropped == ({"other_weight": 3} if wrong_rows else {})
    assert sample.classes == {row.name: row.conversations for row in manifest.classes} == {"expert": 5, "suboptimal": 5}
    assert sample.num_rows == 10 + wrong_rows


def test_weights_are_not_compared_where_they_need_the_rewards_of_all_rows(
    make_recipe: RecipeFactory, tmp_path: Path, small_tokenizer_dir: Path
) -> None:
    source = tokenized_source(tmp_path, small_tokenizer_dir, wrong_rows=0)
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    scored = write_jsonl(tmp_path / "scored.jsonl", [{"messages": turns, "score": 5.0}])
    more = {"path": str(scored), "format": "messages", "class": "scored", "reward_field": "score"}
    classes = {**REWARDS, "scored": {"condition": "Scored"}}
    changes = {"data__sources": [{**source, "class": "expert"}, more], "data__classes": classes}
    first, second = samples(make_recipe(model__template="openchat_3.6", **changes))
    assert set(first.ledger.dropped) == {"unknown_header"}, "the rows of the other class"
    assert (first.classes, second.classes) == ({"expert": 5}, {"scored": 1})
