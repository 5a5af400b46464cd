"""Recipes: every mistake is named with its place, value, rule and remedy, all of them at once, before torch is loaded."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from data_pipeline.errors import UserError
from data_pipeline.strict_yaml import parse_scalar
from ochat_train.recipe import Recipe, load_recipe
from tests.conftest import ROOT, run

GOOD = """\
name: good
seed: 0
output_dir: runs/good
model:
  path: org/base
  template: openchat_3.5
  max_length_tokens: 8192
data:
  prepared_dir: data/prepared
  classes:
    expert: {condition: "GPT4 Correct", reward: 1.0}
    suboptimal: {condition: "GPT3", reward: 0.0}
  beta: 0.4342945
  sources:
    - {path: a.jsonl, format: sharegpt, class: expert}
    - {path: b.jsonl, format: messages, class: suboptimal}
train:
  epochs: 5
  pack_length_tokens: 8192
  tokens_per_step: 655360
optimizer: {learning_rate: 2e-5}
deepspeed: {zero_stage: 2}
checkpoint: {keep_last: 2}
tracking: {wandb: false}
"""
SOURCES = """
    - {path: a.jsonl, format: sharegpt, class: expert}
    - {path: b.jsonl, format: messages, class: suboptimal}
"""


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "recipe.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))
    return path


def message_of(path: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load_recipe(path, overrides)
    return str(caught.value)


def changed(*changes: tuple[str, str]) -> str:
    """The good recipe with texts replaced; each must stand in it exactly once."""
    text = GOOD
    for old, new in changes:
        assert text.count(old) == 1, f"{old!r} stands {text.count(old)} times in the recipe"
        text = text.replace(old, new)
    return text


@dataclass(frozen=True, kw_only=True)
class Wrong:
    """One mistake: `old` becomes `new`; the message names the line where `at` stands and holds all of `says`."""

    old: str
    new: str
    at: str | tuple[str, ...]
    says: tuple[str, ...]


def wrong(old: str, new: str, at: str | tuple[str, ...], *says: str) -> Wrong:
    return Wrong(old=old, new=new, at=at, says=says)


# A rule over several keys stands at the section that holds them; `at` then names the section, or either of the two.
ONE_MISTAKE = {
    "unknown key": wrong("epochs: 5", "epocs: 5\n  epochs: 5", "epocs", "train.epocs", "unknown key", "did you mean `epochs`?"),
    "unknown key like no other": wrong(
        "epochs: 5", "epochs: 5\n  zzz: 3", "zzz", "train.zzz", "unknown key", "known keys: epochs, pack_length_tokens"
    ),
    "unknown key in a class": wrong(
        "reward: 1.0", "reward: 1.0, wieght: 1.0", "wieght", "data.classes.expert.wieght", "did you mean `weight`?"
    ),
    "unknown key in a source": wrong(
        "class: expert", "class: expert, clas_field: x", "clas_field", "data.sources.0.clas_field", "`class_field`?"
    ),
    "unknown section": wrong("tracking: {", "traking: {", "traking", "traking", "unknown key", "did you mean `tracking`?"),
    "missing key": wrong("  epochs: 5\n", "", "train:", "train.epochs", "missing", "passes over the training split"),
    "missing key of a class": wrong('condition: "GPT3", ', "", "suboptimal:", "data.classes.suboptimal.condition", "missing"),
    "missing key of a source": wrong("path: b.jsonl, ", "", "format: messages", "data.sources.1.path", "missing", ".jsonl"),
    "no value": wrong("epochs: 5", "epochs:", "epochs:", "train.epochs", "None", "valid integer"),
    "wrong type": wrong("epochs: 5", "epochs: [1]", "epochs:", "train.epochs", "[1]", "valid integer"),
    "a section that is a text": wrong("{wandb: false}", "hello", "tracking", "tracking", "'hello'", "valid dictionary"),
    "a source that is a text": wrong(
        "{path: a.jsonl, format: sharegpt, class: expert}", "a.jsonl", "a.jsonl", "data.sources.0", "'a.jsonl'"
    ),
    "number in quotes": wrong("epochs: 5", 'epochs: "5"', "epochs:", "train.epochs", "'5'", "valid integer"),
    "fraction for a count": wrong("epochs: 5", "epochs: 2.5", "epochs:", "train.epochs", "2.5", "valid integer"),
    "zero for a count": wrong("epochs: 5", "epochs: 0", "epochs:", "train.epochs", "0", "greater than 0"),
    "number for a text": wrong("path: org/base", "path: 5", "path: 5", "model.path", "5", "valid string"),
    "duplicate key": wrong(
        "epochs: 5", "epochs: 5\n  epochs: 6", "epochs: 6", "train.epochs", "duplicate", "line 18", "keep one"
    ),
    "duplicate section": wrong("tracking: {", "train: {}\ntracking: {", "train: {}", "train", "duplicate key", "line 17"),
    "a list as a key": wrong("epochs: 5", "[a]: 3\n  epochs: 5", "[a]", "a key must be plain text"),
    "merge key": wrong("zero_stage: 2", "zero_stage: 2, <<: {}", "<<", "deepspeed.<<", "unknown key", "zero_stage"),
    "octal of YAML 1.1": wrong("epochs: 5", "epochs: 010", "epochs:", "train.epochs", "10.0", "valid integer"),
    "hexadecimal": wrong("epochs: 5", "epochs: 0x10", "epochs:", "train.epochs", "'0x10'", "valid integer"),
    "no for false": wrong("wandb: false", "wandb: no", "wandb", "tracking.wandb", "'no'", "valid boolean"),
    "reward and weight": wrong(
        "reward: 1.0", "reward: 1.0, weight: 1.0", "expert:", "data.classes.expert", "exactly one of `reward` and `weight`"
    ),
    "neither reward nor weight": wrong(", reward: 1.0", "", "expert:", "data.classes.expert", "exactly one of `reward`"),
    "negative weight": wrong("reward: 1.0", "weight: -0.5", "expert:", "data.classes.expert.weight", "-0.5", "equal to 0"),
    "infinite reward": wrong("reward: 1.0", "reward: .inf", "expert:", "data.classes.expert.reward", "inf", "finite number"),
    "missing beta": wrong("  beta: 0.4342945\n", "", "data:", "data", "`beta` is missing", "`reward`", "0.4342945"),
    "beta 0": wrong("beta: 0.4342945", "beta: 0", "beta", "data.beta", "0", "greater than 0"),
    "beta too small": wrong("beta: 0.4342945", "beta: 0.001", ("data:", "beta"), "classes.suboptimal", "0.001", "raise beta"),
    "infinite beta": wrong("beta: 0.4342945", "beta: .inf", "beta", "data.beta", "inf", "finite number"),
    "number too large": wrong("beta: 0.4342945", "beta: 1e400", "beta", "data.beta", "inf", "finite number"),
    "not a number": wrong("beta: 0.4342945", "beta: .nan", "beta", "data.beta", "nan"),
    "unknown class": wrong(
        "class: expert", "class: exprt", ("data:", "exprt"), "sources.0.class", "unknown class `exprt`", "expert, suboptimal"
    ),
    "class and class_field": wrong(
        "class: expert", "class: expert, class_field: x", "a.jsonl", "data.sources.0", "one of `class` and `class_field`"
    ),
    "source without class": wrong(", class: expert", "", "a.jsonl", "data.sources.0", "give `class` or `class_field`"),
    "unknown format": wrong("sharegpt", "shargpt", "shargpt", "data.sources.0.format", "'shargpt'", "'sharegpt'", "'alpaca'"),
    "empty sources": wrong(SOURCES, " []\n", "sources:", "data.sources", "[]", "at least 1"),
    "validation of everything": wrong(
        "  beta", "  validation_ratio: 1.0\n  beta", "ratio", "data.validation_ratio", "less than 1"
    ),
    "unknown overlong rule": wrong(
        "  beta", "  overlong: cut\n  beta", "cut", "data.overlong", "'cut'", "'truncate'", "'error'"
    ),
    "unknown template": wrong(
        "openchat_3.5", "openchat_35", "template", "model.template", "'openchat_35'", "did you mean `openchat_3.5`?"
    ),
    "template like no other": wrong("openchat_3.5", "vicuna", "template", "model.template", "'vicuna'", "openchat_3.6, chatml"),
    "path and config": wrong(
        "path: org/base", "path: org/base\n  config: {model_type: llama}", "model:", "exactly one of `path`", "`config`"
    ),
    "neither path nor config": wrong("  path: org/base\n", "", "model:", "model", "exactly one of `path`", "`config`"),
    "config without tokenizer": wrong(
        "path: org/base", "config: {model_type: llama}", "model:", "model", "`tokenizer` is missing"
    ),
    "config without model_type": wrong(
        "path: org/base", "config: {hidden_size: 8}\n  tokenizer: a/b", "model:", "config.model_type is missing", "`mistral`"
    ),
    "half a pack": wrong(
        "655360", "655361", "train:", "train", "tokens_per_step 655361", "not a multiple", "8192", "the nearest is 655360"
    ),
    "nearly one pack more": wrong("655360", "663551", "train:", "tokens_per_step 663551", "the nearest is 663552"),
    "less than a pack": wrong("655360", "5", "train:", "train", "tokens_per_step 5", "the nearest is 8192"),
    "conversation longer than a pack": wrong(
        "max_length_tokens: 8192",
        "max_length_tokens: 8193",
        ("name:", "max_length"),
        "model.max_length_tokens 8193",
        "train.pack_length_tokens 8192",
        "raise the pack length",
    ),
    "one folder for both": wrong(
        "runs/good", "data/prepared", ("name:", "output_dir"), "output_dir and data.prepared_dir", "two folders"
    ),
    "zero_stage 4": wrong("zero_stage: 2", "zero_stage: 4", "zero_stage", "deepspeed.zero_stage", "4", "0, 1, 2 or 3"),
    "offload at stage 0": wrong(
        "zero_stage: 2",
        "zero_stage: 0, offload_optimizer: true",
        "zero_stage",
        "deepspeed",
        "offload_optimizer needs zero_stage 1",
    ),
    "parameters offloaded at stage 2": wrong(
        "zero_stage: 2", "zero_stage: 2, offload_parameters: true", "zero_stage", "deepspeed", "needs zero_stage 3"
    ),
    "raw key that the recipe owns": wrong(
        "zero_stage: 2",
        "zero_stage: 2, config: {train_batch_size: 4}",
        "zero_stage",
        "deepspeed",
        "config.train_batch_size",
        "decided by the recipe",
        "change it there",
    ),
    "name that leaves the folder": wrong("name: good", "name: ../x", "name", "name", "'../x'", "letters, digits"),
    "name with a shell command": wrong("name: good", "name: a;rm", "name", "name", "'a;rm'", "letters, digits"),
    "empty name": wrong("name: good", 'name: ""', "name", "name", "''", "1 to 64 letters"),
    "name with a line end": wrong("name: good", 'name: "good\\n"', "name", "name", "'good\\n'", "letters, digits"),
    "empty output_dir": wrong("output_dir: runs/good", 'output_dir: ""', "output_dir", "output_dir", "''", "at least 1"),
    "negative seed": wrong("seed: 0", "seed: -1", "seed", "seed", "-1", "greater than or equal to 0"),
    "warmup_ratio 1.5": wrong(
        "learning_rate: 2e-5", "warmup_ratio: 1.5", "warmup", "optimizer.warmup_ratio", "1.5", "less than 1"
    ),
    "one beta of AdamW": wrong("learning_rate: 2e-5", "betas: [0.9]", "betas", "optimizer.betas", "[0.9]", "at least 2"),
    "AdamW beta 1": wrong("learning_rate: 2e-5", "betas: [0.9, 1.0]", "betas", "optimizer.betas.1", "1.0", "less than 1"),
}


@pytest.mark.parametrize("mistake", ONE_MISTAKE.values(), ids=ONE_MISTAKE.keys())
def test_one_mistake_gives_one_line_with_place_value_and_rule(mistake: Wrong, tmp_path: Path) -> None:
    text = changed((mistake.old, mistake.new))
    path = write(tmp_path, text)
    head, *problems = message_of(path).split("\n")
    assert head == f"{path}: 1 problem"
    assert len(problems) == 1
    anchors = (mistake.at,) if isinstance(mistake.at, str) else mistake.at
    lines = [number for number, line in enumerate(text.splitlines(), 1) if any(anchor in line for anchor in anchors)]
    assert any(problems[0].startswith(f"  {path}:{line}: ") for line in lines), (problems[0], lines)
    for part in mistake.says:
        assert part in problems[0]


def test_a_rule_over_several_keys_does_not_repeat_the_whole_section(tmp_path: Path) -> None:
    path = write(tmp_path, changed(("655360", "655361")))
    problem = "tokens_per_step 655361 is not a multiple of pack_length_tokens 8192; the nearest is 655360"
    assert message_of(path) == f"{path}: 1 problem\n  {path}:17: train: {problem}"


@pytest.mark.parametrize("value", ["fast", "0", "-1e-5", "true", '"2e-5"', ".inf", "1e400"])
def test_a_wrong_learning_rate(value: str, tmp_path: Path) -> None:
    path = write(tmp_path, changed(("learning_rate: 2e-5", f"learning_rate: {value}")))
    message = message_of(path)
    shown = repr(parse_scalar(value))
    assert f"{path}:21: optimizer.learning_rate: {shown}: " in message
    assert "'auto'" in message
    assert "number" in message or "greater than 0" in message


# What makes the rest of the file unreadable: nothing else can be reported beside it.
UNREADABLE = {
    "alias": (changed(("epochs: 5", "epochs: *a")), 18, ("aliases and anchors are not allowed", "write the value out")),
    "anchor": (changed(("epochs: 5", "epochs: &a 5")), 18, ("aliases and anchors are not allowed",)),
    "anchor bomb": (
        "a: &a [x, x, x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}, *{a}, *{a}]\n" for a, b in pairwise("abcdefghijklmnop")),
        1,
        ("aliases and anchors are not allowed",),
    ),
    "merge of an alias": (changed(("zero_stage: 2", "zero_stage: 2, <<: *a")), 22, ("aliases and anchors",)),
    "tag": (changed(("epochs: 5", "epochs: !!int 5")), 18, ("tags", "tag:yaml.org,2002:int", "remove it")),
    "tag that runs code": (
        changed(("epochs: 5", 'epochs: !!python/object/apply:os.system ["false"]')),
        18,
        ("tags", "os.system", "remove it"),
    ),
    "tag without a name": (changed(("epochs: 5", "epochs: ! 5")), 18, ("tags", "remove it")),
    "bracket not closed": (changed(("epochs: 5", "epochs: [5")), 19, ("not valid YAML",)),
    "tab": (changed(("  epochs: 5", "\tepochs: 5")), 18, ("not valid YAML", "\\t")),
    "two documents": (changed(("seed: 0", "---\nseed: 0")), 2, ("not valid YAML", "another document")),
}


@pytest.mark.parametrize(("text", "line", "says"), UNREADABLE.values(), ids=UNREADABLE.keys())
def test_what_makes_a_file_unreadable_is_named_with_its_line(
    text: str, line: int, says: tuple[str, ...], tmp_path: Path
) -> None:
    path = write(tmp_path, text)
    message = message_of(path)
    assert message.startswith(f"{path}:{line}: ")
    assert "\n" not in message
    for part in says:
        assert part in message


@pytest.mark.parametrize("text", ["- a\n- b\n", "hello\n", "5\n"])
def test_a_file_that_is_not_a_mapping(text: str, tmp_path: Path) -> None:
    path = write(tmp_path, text)
    assert message_of(path) == f"{path}: a recipe is a mapping of sections (name, model, data, train, ...)"


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "{}\n"])
def test_an_empty_file_names_everything_that_is_missing(text: str, tmp_path: Path) -> None:
    path = write(tmp_path, text)
    problems = message_of(path).split("\n")[1:]
    assert [problem.split(": ")[1] for problem in problems] == ["name", "output_dir", "model", "data", "train"]
    assert all("missing" in problem for problem in problems)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    missing = tmp_path / "none.yaml"
    assert message_of(missing) == f"{missing}: cannot be read: No such file or directory"
    assert message_of(tmp_path) == f"{tmp_path}: cannot be read: Is a directory"
    invalid = write(tmp_path, b"name: \xff\n")
    assert message_of(invalid).startswith(f"{invalid}: cannot be read: ")
    assert "utf-8" in message_of(invalid)


def test_mistakes_in_all_sections_are_reported_at_once(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        changed(
            ("name: good", "name: ../x"),
            ("seed: 0", "seed: -1"),
            ("openchat_3.5", "openchat_35"),
            ("class: expert", "class: exprt"),
            ("655360", "655361"),
            ("learning_rate: 2e-5", "warmup_ratio: 1.5"),
            ("zero_stage: 2", "zero_stage: 4"),
            ("keep_last: 2", "keep_lst: 2"),
            ("wandb: false", "wandb: no"),
            ("  beta: 0.4342945", "  beta: 0.4342945\n  beta: 0.4342945"),
        ),
    )
    head, *problems = message_of(path, "foo", "train.epochs.x=1").split("\n")
    assert head == f"{path}: 12 problems"
    assert len(problems) == 12
    named = (
        "name: '../x'", "seed: -1", "'openchat_35'", "`exprt`", "tokens_per_step 655361", "warmup_ratio: 1.5", "zero_stage: 4",
        "keep_lst: unknown", "wandb: 'no'", "data.beta: duplicate", "--set foo", "--set train.epochs.x",
    )  # fmt: skip
    for part in named:
        assert sum(part in problem for problem in problems) == 1, part


# ---- what is accepted ----


def test_the_good_recipe(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, GOOD))
    assert recipe.optimizer.learning_rate == 2e-5
    assert isinstance(recipe.optimizer.learning_rate, float)
    assert recipe.train.bins_per_step == 80
    assert recipe.model.tokenizer_source == "org/base"
    assert [source.class_name for source in recipe.data.sources] == ["expert", "suboptimal"]
    # what was left out
    assert recipe.train.loss_denominator == "epoch"
    assert (recipe.optimizer.warmup_ratio, recipe.optimizer.betas, recipe.optimizer.eps) == (0.05, [0.9, 0.95], 1e-5)
    assert (recipe.checkpoint.save_every_steps, recipe.tracking.tensorboard) == (None, False)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2e-5", 2e-5), ("1.0e-5", 1e-5), ("1e3", 1000.0), ("-2E+3", -2000.0), (".5", 0.5), ("1.", 1.0), ("0", 0), ("-7", -7),
        ("true", True), ("false", False), ("null", None), ("~", None), ("no", "no"), ("off", "off"), ("y", "y"),
        ("0x10", "0x10"),
        ("1:30", "1:30"), ("2020-01-01", "2020-01-01"), ("openchat_3.5", "openchat_3.5"), ("3.5.1", "3.5.1"), ("=", "="),
        ("<<", "<<"), ('"5"', "5"), ("'true'", "true"), ("[1, a]", [1, "a"]), ("{a: 1}", {"a": 1}), ("{1: a}", {"1": "a"}),
    ],
)  # fmt: skip
def test_scalars_are_those_of_yaml_1_2(text: str, value: Any) -> None:
    found = parse_scalar(text)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.name)
def test_the_recipes_that_come_along_are_right(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.name == path.stem
    assert recipe.output_dir == f"runs/{recipe.name}"


def test_a_fingerprint_follows_the_values_and_not_the_text(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, GOOD))
    same = load_recipe(write(tmp_path, "# a comment\n" + changed(("learning_rate: 2e-5", "learning_rate: 0.00002"))))
    other = load_recipe(write(tmp_path, changed(("learning_rate: 2e-5", "learning_rate: 3e-5"))))
    assert recipe.fingerprint == same.fingerprint
    assert recipe.fingerprint != other.fingerprint


def test_a_recipe_survives_its_own_json(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, GOOD))
    again = Recipe.model_validate(json.loads(json.dumps(recipe.model_dump(mode="json", by_alias=True))))
    assert again == recipe
    assert again.fingerprint == recipe.fingerprint


def test_values_do_not_change_after_loading(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, GOOD))
    with pytest.raises(ValueError, match="frozen"):
        recipe.train.epochs = 7  # type: ignore[misc]


# ---- --set ----


def test_set_changes_values(tmp_path: Path) -> None:
    recipe = load_recipe(
        write(tmp_path, GOOD),
        [
            "name=other",
            "train.epochs=7",
            "optimizer.learning_rate=3e-5",
            "optimizer.betas=[0.8, 0.9]",
            "data.sources.1.path=c.jsonl",
            "data.classes.expert.reward=2",
            "data.classes.third={condition: Math, reward: 0.5}",
            "checkpoint.save_every_steps=10",
            "deepspeed.config.zero_optimization.overlap_comm=true",
            "model.revision=a=b",
            "train.epochs=8",  # the last one counts
        ],
    )
    assert recipe.name == "other"
    assert recipe.train.epochs == 8
    assert recipe.optimizer.learning_rate == 3e-5
    assert recipe.optimizer.betas == [0.8, 0.9]
    assert [source.path for source in recipe.data.sources] == ["a.jsonl", "c.jsonl"]
    assert recipe.data.classes["expert"].reward == 2.0
    assert recipe.data.classes["third"].condition == "Math"
    assert recipe.checkpoint.save_every_steps == 10
    assert recipe.deepspeed.config == {"zero_optimization": {"overlap_comm": True}}
    assert recipe.model.revision == "a=b"


def test_set_reaches_into_lists(tmp_path: Path) -> None:
    path = write(tmp_path, changed(("learning_rate: 2e-5", "betas: [0.9, 0.95]")))
    recipe = load_recipe(path, ["optimizer.betas.1=0.98", "data.sources.0={path: z.parquet, format: alpaca, class: expert}"])
    assert recipe.optimizer.betas == [0.9, 0.98]
    assert (recipe.data.sources[0].path, recipe.data.sources[1].path) == ("z.parquet", "b.jsonl")


def test_set_repairs_a_recipe(tmp_path: Path) -> None:
    path = write(tmp_path, changed(("max_length_tokens: 8192", "max_length_tokens: 9000")))
    assert "9000" in message_of(path)
    assert load_recipe(path, ["model.max_length_tokens=4096"]).model.max_length_tokens == 4096


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("foo", ("--set foo", "expected section.key=value")),
        ("=3", ("--set =3", "expected section.key=value")),
        ("train.epochs", ("--set train.epochs", "expected section.key=value")),
        ("train.epocs=7", ("train.epocs", "unknown key", "did you mean `epochs`?")),
        ("trian.epochs=7", ("trian", "unknown key", "did you mean `train`?")),
        ("train.epochs=x", ("train.epochs", "'x'", "valid integer")),
        ("train.epochs=", ("train.epochs", "''", "valid integer")),
        ('train.epochs="7"', ("train.epochs", "'7'", "valid integer")),
        ("train.epochs.x=7", ("--set train.epochs.x=7", "not inside a section")),
        ("data.sources.9.path=c", ("--set data.sources.9.path=c", "not inside a section")),
        ("data.sources.0.class=nobody", ("sources.0.class", "unknown class `nobody`", "expert, suboptimal")),
        ("data.sources.0.colour=red", ("data.sources.0.colour", "unknown key", "path")),
        ("train.tokens_per_step=9000", ("tokens_per_step 9000", "the nearest is 8192")),
        ("tracking.wandb=no", ("tracking.wandb", "'no'", "valid boolean")),
        ("optimizer.warmup_ratio=1.5", ("optimizer.warmup_ratio", "1.5", "less than 1")),
        ("name=../x", ("name", "'../x'", "letters, digits")),
        ("train.epochs=[", ("--set", "not valid YAML")),
        ("train.epochs=&a 3", ("--set", "aliases and anchors are not allowed")),
        ("train.epochs=!!int 3", ("--set", "tags", "not allowed")),
    ],
)
def test_set_is_checked_like_the_recipe(override: str, says: tuple[str, ...], tmp_path: Path) -> None:
    message = message_of(write(tmp_path, GOOD), override)
    for part in says:
        assert part in message


# ---- nothing but UserError ----


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of all sections, lists and values inside a recipe."""
    yield path
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in entries:
        yield from leaves(inner, (*path, key))


ODD_VALUES = [None, True, -1, 10**30, "", "é\n", [[]], {"x": {"y": 1}}]


@pytest.mark.parametrize("place", list(leaves(yaml.safe_load(GOOD)))[1:], ids=lambda place: ".".join(map(str, place)))
def test_odd_values_anywhere_give_a_recipe_or_a_user_error(place: tuple[Any, ...], tmp_path: Path) -> None:
    for odd in ODD_VALUES:
        content = yaml.safe_load(GOOD)
        target = content
        for key in place[:-1]:
            target = target[key]
        target[place[-1]] = odd
        path = write(tmp_path, json.dumps(content))  # JSON is YAML
        with suppress(UserError):
            load_recipe(path)


# ---- as a user sees it ----

CHECK_TORCH = """\
import sys
from ochat_train.cli import main
code = main(sys.argv[1:])
assert "torch" not in sys.modules, "torch was imported"
sys.exit(code)
"""


def assert_one_message(finished: subprocess.CompletedProcess[str], *says: str) -> None:
    assert finished.returncode == 2, finished.stderr
    assert finished.stdout == ""
    assert "Traceback" not in finished.stderr
    assert finished.stderr.startswith("ochat train: ")
    assert finished.stderr.count("ochat train") == 1
    for part in says:
        assert part in finished.stderr


def test_a_wrong_recipe_ends_training_before_torch_is_loaded(tmp_path: Path) -> None:
    path = write(tmp_path, changed(("epochs: 5", "epocs: 5")))
    finished = run([sys.executable, "-c", CHECK_TORCH, "train", str(path), "--set", "optimizer.warmup_ratio=1.5"])
    lines = finished.stderr.splitlines()
    assert_one_message(finished, "train.epochs: missing", "did you mean `epochs`?", "warmup_ratio: 1.5")
    assert lines[0] == f"ochat train: {path}: 3 problems"
    assert len(lines) == 4


def test_what_launchers_start_ends_in_the_same_way(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ochat_train", str(tmp_path / "none.yaml"), "--local_rank", "0"]
    assert_one_message(run(command), f"{tmp_path / 'none.yaml'}: cannot be read")
    second_rank = run(command, RANK="1")
    assert second_rank.returncode == 2
    assert second_rank.stderr == ""  # every rank finds the problem; rank 0 tells it


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    finished = run([sys.executable, "-m", "ochat_train", str(tmp_path / "none.yaml"), "--debug"])
    assert finished.returncode == 1
    assert "Traceback" in finished.stderr
    assert "cannot be read" in finished.stderr
