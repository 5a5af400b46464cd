"""Templates in files of the user's: every problem named with its line, and the whole way to an export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from data_pipeline.errors import UserError
from data_pipeline.look.prepared import Inspection
from data_pipeline.prepare.prepare import prepare
from data_pipeline.prompt.template import Template
from data_pipeline.prompt.templates import TEMPLATES
from ochat_train.cli.main import main
from ochat_train.recipe.load import load_recipe
from ochat_train.recipe.preparation import prepare_job
from ochat_train.recipe.template_file import load_template
from tests.support.small_recipe import RecipeFactory

MINE: dict[str, Any] = {
    "name": "mine",
    "control_tokens": ["<|open|>", "<|end|>"],
    "turns": {
        "system": {"open": "<|open|>system\n", "close": "<|end|>"},
        "user": {"open": "<|open|>{condition}user\n", "close": "<|end|>"},
        "assistant": {"open": "<|open|>{condition}assistant\n", "close": "<|end|>", "after": "\n"},
    },
}


def written(path: Path, **changes: Any) -> Path:
    """MINE with changes; a dotted key goes deeper, None removes it."""
    values = json.loads(json.dumps(MINE))
    for key, value in changes.items():
        *sections, last = key.split("__")
        target = values
        for section in sections:
            target = target.setdefault(section, {})
        if value is None:
            del target[last]
        else:
            target[last] = json.loads(json.dumps(value))
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


TOOLS = {
    "tools": {"lead": "\n", "open": "[", "each": " ", "close": "]"},
    "tool_calls": {"lead": "\n", "each": "{name}{arguments}", "between": "\n"},
    "turns__tool": {"open": "<|open|>tool\n", "close": "<|end|>"},
}
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"colour": "red"}, "colour: unknown key"),
    ({"turns__user__opne": "x"}, "turns.user.opne: unknown key; did you mean `open`?"),
    ({"turns__assistant": None}, "turns.assistant: missing"),
    ({"bos": "yes"}, "expected `true` or `false`"),
    ({"control_tokens": ["<|open|>", "<|end|>", "<|lost|>"]}, "'<|lost|>' is written nowhere"),
    ({"control_tokens": ["<|open|>", "<|end|>", "<|end|>"]}, "the same token twice"),
    ({"control_tokens": ["<|open|>", "<|end|>", "y"]}, "'y' is too short"),
    ({"condition": "C"}, "must hold `{condition}` once"),
    ({"condition": "<|end|>{condition}"}, "no control token"),
    ({"turns__system__open": "<|open|>{condition}\n"}, "a condition is written once"),
    ({"turns__user__open": "<|open|>{condition}{condition}"}, "a condition is written once"),
    ({"turns__user__open": "<|open|>u", "turns__assistant__open": "<|open|>a"}, "conditions could not be told apart"),
    ({"turns__assistant__close": "<|end|>\n"}, "`close` must end with a control token"),
    ({"turns__assistant__close_last": "x"}, "`close` must end with a control token"),
    ({"turns__assistant__after": "<|end|>"}, "is plain text"),
    ({"turns__user__lead": "<|end|>"}, "is plain text"),
    ({"turns__user__close_last": "<|end|>"}, "only an assistant message has `close_last`"),
    ({"turns__system__close_last": "<|end|>"}, "is always the first"),
    ({"system_in_user": {"close": "\n"}}, "there is `turns.system`; keep one of them"),
    ({"turns__system": None, "default_system": "S"}, "no place for a system text"),
    ({"tools": TOOLS["tools"]}, "belong together"),
    ({**TOOLS, "turns__system": None}, "give `turns.system`"),
    ({**TOOLS, "tool_calls__each": "{arguments}{name}"}, "must hold `{name}` and then `{arguments}`"),
    ({**TOOLS, "tools__open": "x<|end|>"}, "plain text without control tokens"),
    ({"begin": "a\ufdd0"}, "U+FDD0"),
    ({"name": "chatml"}, "`chatml` is a built-in template"),
]


@pytest.mark.parametrize(("changes", "words"), WRONG, ids=[words for _, words in WRONG])
def test_what_is_wrong_is_named(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    assert load_template(written(tmp_path / "good.yaml", **(TOOLS if "tools" in changes else {}))).name == "mine"
    with pytest.raises(UserError) as caught:
        load_template(written(tmp_path / "mine.yaml", **changes))
    assert words in str(caught.value)
    assert str(tmp_path / "mine.yaml") in str(caught.value)


def test_problems_have_their_line(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\ncontrol_tokens: []\ncolour: red\nname: mine\n", encoding="utf-8")
    with pytest.raises(UserError) as caught:
        load_template(path)
    message = str(caught.value)
    assert all(f"{path}:{line}:" in message for line in (2, 3, 4)), message
    with pytest.raises(UserError, match="cannot be read"):
        load_template(tmp_path / "none.yaml")


def test_the_files_of_the_project_are_read_as_strictly() -> None:
    folder = Path(__file__).parents[3] / "data_pipeline" / "prompt" / "template_files"
    assert {load_template(path).name for path in folder.glob("*.yaml")} == set(TEMPLATES)
    assert all(load_template(folder / f"{name}.yaml") == template for name, template in TEMPLATES.items())


def test_a_recipe_is_prepared_with_a_template_file(make_recipe: RecipeFactory, tmp_path: Path) -> None:
    path = written(tmp_path / "mine.yaml")
    recipe = load_recipe(make_recipe(model__template=str(path)))
    manifest, _ = prepare(prepare_job(recipe), num_workers=1)
    prepared = Path(recipe.data.prepared_dir)
    assert (manifest.template, manifest.control_tokens) == ("mine", MINE["control_tokens"])
    inspection = Inspection(prepared, "train")
    row = inspection.row(0)
    controls = [token.text for token in row.tokens if token.kind == "control"]
    assert controls[-2:] == ["<|open|>", "<|end|>"]
    prefixes = "".join(token.text for token in row.tokens if token.kind == "prefix")
    assert prefixes.endswith(f"{row.condition} assistant\n")
    written(path, turns__user__open="<|open|>{condition}human\n")
    assert prepare_job(recipe).template != Template.model_validate(MINE)
    other, _ = prepare(prepare_job(recipe), num_workers=1)
    assert other.inputs["template"] != manifest.inputs["template"]
    assert {**other.inputs, "template": ""} == {**manifest.inputs, "template": ""}
    (prepared / "tokenizer" / "template.json").write_text("{}", encoding="utf-8")
    with pytest.raises(UserError, match="run `ochat prepare` again"):
        Inspection(prepared, "train")


def test_the_schema_of_template_files(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema", "--template"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert schema["properties"].keys() == Template.model_fields.keys()
    assert schema["additionalProperties"] is False
