"""Keys of a recipe for Jinja templates: which go together, and what they find."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from data_pipeline.errors import UserError
from data_pipeline.prompt.base_template.template import BaseTemplate
from ochat_train.recipe.load import load_recipe
from ochat_train.recipe.prompts import load_prompts
from tests.support.jinja_templates import DATED, PLAIN, write_base_tokenizer
from tests.support.small_recipe import write_small_recipe


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({"template": "bas"}, "unknown template; did you mean `base`"),
        ({"template": "base", "condition_in": "role"}, "condition_in: `role` is only for built-in templates"),
        ({"template": "chatml", "condition_in": "system"}, "condition_in: `system` is only for `base` and `.jinja`"),
        ({"template": "chatml", "rewritten_history": "error"}, "rewritten_history: only for `base`"),
        ({"template": "base", "template_date": "2026-02-30"}, "template_date: 2026-02-30 is no day"),
        ({"template": "base", "template_variables": {"messages": []}}, "messages: every conversation has its own"),
        ({"template": "base", "template_variables": {"a-b": 1}}, "a-b: is not the name of a variable"),
    ],
)
def test_refused_keys(tmp_path: Path, model: dict[str, Any], words: str) -> None:
    path = write_small_recipe(tmp_path, tmp_path, **{f"model__{key}": value for key, value in model.items()})
    with pytest.raises(UserError) as caught:
        load_recipe(path)
    assert words in str(caught.value)


def test_a_template_comes_from_the_tokenizer_or_from_a_file(tmp_path: Path) -> None:
    folder = write_base_tokenizer(tmp_path / "base", DATED)
    model = {"template": "base", "template_date": "2026-01-31", "template_variables": {"kind": ["a"]}}
    recipe = load_recipe(
        write_small_recipe(tmp_path, folder, **{f"model__{key}": value for key, value in model.items()})
    )
    template = load_prompts(recipe.model).template
    assert isinstance(template, BaseTemplate)
    assert (template.condition_in, template.rewritten_history) == ("system", "one_row_per_answer")
    assert template.dates == {"%d %B %Y": "31 January 2026"}
    assert template.variables == {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<eos>", "kind": ["a"]}
    file = tmp_path / "own.jinja"
    file.write_text(PLAIN, encoding="utf-8")
    template = load_prompts(recipe.model.model_copy(update={"template": str(file)})).template
    assert isinstance(template, BaseTemplate)
    assert (template.text, template.place) == (PLAIN, str(file))
    with pytest.raises(UserError, match="no such file"):
        load_prompts(recipe.model.model_copy(update={"template": str(tmp_path / "other.jinja")}))
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match="the tokenizer has no chat template"):
        load_prompts(recipe.model)
