"""The JSON schema: what editors are told, and where they find it."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from data_pipeline.errors import UserError
from data_pipeline.prompt.templates import TEMPLATES
from ochat_train.cli.main import main
from ochat_train.recipe import schema as schema_module
from ochat_train.recipe.schema import schema_file, schema_line
from tests.support.processes import ROOT

RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
HEAD = "# yaml-language-server: $schema="


def problems(recipe: object) -> list[str]:
    """What an editor would underline."""
    document = json.loads(schema_file("recipe").read_text(encoding="utf-8"))
    return [error.json_path for error in jsonschema.Draft202012Validator(document).iter_errors(recipe)]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_of_the_project_names_the_schema_and_follows_it(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    first = text.splitlines()[0]
    assert first.startswith(HEAD)
    assert (path.parent / first.removeprefix(HEAD)).resolve() == schema_file("recipe").resolve()
    assert first == schema_line(path, project=ROOT)
    assert problems(yaml.safe_load(text)) == []


@pytest.mark.parametrize(
    ("template", "is_right"),
    [
        *((name, True) for name in (*TEMPLATES, "base", "my/own.jinja", "own.yml")),
        *((name, False) for name in ("openchat_3.4", "own.txt", "", 3)),
    ],
)
def test_an_editor_knows_the_templates_and_accepts_files(template: object, is_right: bool) -> None:
    recipe = yaml.safe_load((ROOT / "recipes" / "quickstart.yaml").read_text(encoding="utf-8"))
    recipe["model"]["template"] = template
    assert problems(recipe) == ([] if is_right else ["$.model.template"])


def test_the_path_of_the_schema_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    for flags, title in (([], "Recipe"), (["--template"], "Template")):
        assert main(["schema", "--path", *flags]) == 0
        printed = Path(capsys.readouterr().out.removesuffix("\n"))
        assert json.loads(printed.read_text(encoding="utf-8"))["title"] == title


def test_the_line_is_relative_inside_a_project_and_absolute_elsewhere(tmp_path: Path) -> None:
    installed = schema_file("recipe")
    assert schema_line(ROOT / "a" / "b" / "mine.yaml", project=ROOT).endswith(
        "$schema=../../ochat_train/recipe/recipe.schema.json"
    )
    assert schema_line(tmp_path / "mine.yaml", project=tmp_path) == f"{HEAD}{installed}"


def test_an_installation_without_the_file_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema_module, "__file__", str(tmp_path / "schema.py"))
    with pytest.raises(UserError, match=r"ochat schema --template > template\.schema\.json"):
        schema_file("template")
