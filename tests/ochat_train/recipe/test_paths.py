"""`~` and `${NAME}` in recipes: replaced in keys that hold paths, refused in all others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_pipeline.path_keys import EXPANDED, KEEP_UNSET, expand, is_path, written_path
from data_pipeline.section import all_fields
from ochat_train.recipe.load import load_recipe
from ochat_train.recipe.recipe import Recipe
from tests.support.recipe_texts import GOOD, changed, message_of, write

PATH_KEYS = {
    "output_dir",
    "model.path",
    "model.tokenizer",
    "model.template",
    "data.prepared_dir",
    "data.sources.*.path",
    "validation.questions",
}


@pytest.fixture
def surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("SCRATCH", "/scratch/$5")
    monkeypatch.setenv("EMPTY", "")
    monkeypatch.delenv("UNSET", raising=False)


def test_the_keys_that_hold_paths() -> None:
    """A key whose description speaks of a file or folder and that is not here was forgotten."""
    assert {".".join(place) for place, field in all_fields(Recipe) if is_path(field)} >= PATH_KEYS


def test_every_path_key_is_expanded_and_written_back_as_it_was(surroundings: None, tmp_path: Path) -> None:
    text = changed(
        ("runs/good", "~/runs/good"),
        ("org/base", "${SCRATCH}/base\n  tokenizer: ~/tokenizer"),
        ("data/prepared", "~/prepared"),
        ("a.jsonl", '"${SCRATCH}/${SCRATCH}.jsonl"'),
        ("tracking:", 'validation: {questions: "~"}\ntracking:'),
    )
    recipe = load_recipe(write(tmp_path, text))
    assert recipe.output_dir == "/home/me/runs/good"
    assert (recipe.model.path, recipe.model.tokenizer) == ("/scratch/$5/base", "/home/me/tokenizer")
    assert recipe.data.prepared_dir == "/home/me/prepared"
    assert [source.path for source in recipe.data.sources] == ["/scratch/$5//scratch/$5.jsonl", "b.jsonl"]
    assert recipe.validation.questions == "/home/me", "a plain ~ is null in YAML"
    again = json.dumps(recipe.model_dump(mode="json", by_alias=True))
    assert "/home/me" not in again
    assert "/scratch" not in again
    assert Recipe.model_validate_json(again) == recipe
    assert json.loads(again)["data"]["sources"][0]["path"] == "${SCRATCH}/${SCRATCH}.jsonl"


def test_a_recipe_is_the_same_recipe_for_another_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, changed(("runs/good", "~/runs/good")))
    fingerprints = []
    for home in ("/home/me", "/home/you"):
        monkeypatch.setenv("HOME", home)
        recipe = load_recipe(path)
        assert recipe.output_dir == f"{home}/runs/good"
        fingerprints.append(recipe.fingerprint)
    assert fingerprints[0] == fingerprints[1]


def test_hosts_compare_the_paths_that_they_use(surroundings: None, tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, changed(("runs/good", "~/runs/good"))))
    assert recipe.model_dump(mode="json", context=EXPANDED)["output_dir"] == "/home/me/runs/good"
    assert recipe.model_dump(mode="json")["output_dir"] == "~/runs/good"


def test_set_is_expanded_too(surroundings: None, tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, GOOD), ["output_dir=${SCRATCH}/x", "data.sources.1.path=~/b.jsonl"])
    assert (recipe.output_dir, recipe.data.sources[1].path) == ("/scratch/$5/x", "/home/me/b.jsonl")


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ("${UNSET}/x", "UNSET is not set in the environment; `export UNSET=...`, or write the path out"),
        ("${EMPTY}/x", "EMPTY is empty in the environment"),
        ("a/$SCRATCH/x", "`$SCRATCH` is not replaced; write `${SCRATCH}`, or `$$SCRATCH` for a plain `$`"),
        ("${}/x", "`${}` is not `${NAME}`"),
        ("${SCRATCH:-/tmp}/x", "`${SCRATCH:-/tmp}` is not `${NAME}`"),
        ("${SCRATCH", "`${SCRATCH` is not `${NAME}`"),
        ("~nobody-is-called-so/x", "`~nobody-is-called-so` is no home on this machine"),
    ],
)
@pytest.mark.parametrize("old", ["runs/good", "org/base", "data/prepared", "a.jsonl"])
def test_what_cannot_be_expanded_is_named_with_its_line(
    written: str, says: str, old: str, surroundings: None, tmp_path: Path
) -> None:
    text = changed((old, json.dumps(written)))
    [line] = [number for number, content in enumerate(text.splitlines(), 1) if json.dumps(written) in content]
    message = message_of(write(tmp_path, text))
    assert f"recipe.yaml:{line}: " in message
    assert says in message
    assert "\n" in message
    assert message.count("recipe.yaml:") == 2, "the file itself, and one problem"


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ('"GPT4 Correct"', '"${CONDITION}"', "data.classes.expert.condition"),
        ("template: openchat_3.5", "template: openchat_3.5\n  revision: ${REVISION}", "model.revision"),
        ("{wandb: false}", "{wandb: false, wandb_project: ~/team}", "tracking.wandb_project"),
        ("{zero_stage: 2}", "{zero_stage: 2, config: {nvme_path: '${SCRATCH}/x'}}", "deepspeed.config.nvme_path"),
        ("class: suboptimal", "class: suboptimal, split: '${SPLIT}'", "data.sources.1.split"),
    ],
)
def test_elsewhere_they_are_an_error(old: str, new: str, key: str, surroundings: None, tmp_path: Path) -> None:
    text = changed((old, new))
    message = message_of(write(tmp_path, text))
    line = next(number for number, content in enumerate(text.splitlines(), 1) if new.splitlines()[-1] in content)
    assert f"recipe.yaml:{line}: {key}: holds no path, so `~` and `${{NAME}}` are not replaced here" in message
    assert "output_dir" in message
    assert "write the value out" in message


def test_text_that_may_hold_them(surroundings: None, tmp_path: Path) -> None:
    """Money, a prompt about shells, a regular expression, and a `~` inside a word are no paths."""
    text = changed(
        ('"GPT4 Correct"', '"GPT4 ~90 % for $5"'),
        ("tracking:", "validation: {prompts: ['What is ${HOME} or ~/x?'], answer_pattern: '~/(.*)${x}?'}\ntracking:"),
    )
    recipe = load_recipe(write(tmp_path, text))
    assert recipe.validation.prompts == ["What is ${HOME} or ~/x?"]
    assert recipe.data.classes["expert"].condition == "GPT4 ~90 % for $5"


def test_plain_dollars_and_tildes() -> None:
    environment = {"A": "${B}~$C", "B": "b"}
    assert expand("./~/a~b/$5/${A}", environment) == "./~/a~b/$5/${B}~$C", "what was put in is not expanded again"
    assert expand("$${A}/$$A/$", environment) == "${A}/$A/$"
    for path in ("~x/$A", "a${A}", "cost $5", "$"):
        assert expand(written_path(path), environment).removeprefix("./") == path


def test_the_recipe_of_an_ended_run_is_read_where_its_names_are_not_set(surroundings: None, tmp_path: Path) -> None:
    """Its metrics and checkpoints can be used on another machine, where only what needs the path cannot."""
    recipe = load_recipe(write(tmp_path, GOOD), ["output_dir=${SCRATCH}/x"])
    text = json.dumps(recipe.model_dump(mode="json", by_alias=True)).replace("SCRATCH", "UNSET")
    with pytest.raises(ValueError, match="UNSET is not set"):
        Recipe.model_validate_json(text)
    read = Recipe.model_validate_json(text, context=KEEP_UNSET)
    assert read.output_dir == "${UNSET}/x"
    assert read.model_dump(mode="json")["output_dir"] == "${UNSET}/x"
