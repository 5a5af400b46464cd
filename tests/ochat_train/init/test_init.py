"""`ochat init` writes recipes that load, prepare and plan unchanged, and never overwrites or guesses in silence."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from data_pipeline.errors import UserError
from ochat_train.cli.main import main
from ochat_train.init import sizes
from ochat_train.init.classes import default_names
from ochat_train.init.draft import choose_bad_rows, recipe_name
from ochat_train.init.init import draft_recipe, init, write_recipe
from ochat_train.init.options import Options
from ochat_train.init.recipe_text import recipe_text, yaml_text
from ochat_train.recipe.load import load_recipe
from ochat_train.recipe.preparation import prepare_recipe
from tests.support.processes import PYTHONPATH
from tests.support.rows import conversations, write_jsonl
from tests.support.small_recipe import TINY_MODEL
from tests.support.tokenizers import write_small_tokenizer

MISTRAL = {"model_type": "mistral", "vocab_size": 32_000, "max_position_embeddings": 4096}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with two files of different formats, and a base."""
    monkeypatch.chdir(tmp_path)
    rows = conversations(300)
    write_jsonl(Path("data/gpt4.jsonl"), rows[:120])
    turns = [[{"from": t["role"], "value": t["content"]} for t in row["messages"]] for row in rows[120:]]
    write_jsonl(Path("data/gpt35.jsonl"), [{"conversations": turn} for turn in turns])
    Path("base").mkdir()
    write_small_tokenizer(Path("base"))
    Path("base/config.json").write_text(json.dumps({**TINY_MODEL, "vocab_size": 400}), encoding="utf-8")
    return tmp_path


def options(*files: str, **changes: Any) -> Options:
    values: dict[str, Any] = {
        "files": files or ("data/gpt4.jsonl", "data/gpt35.jsonl"),
        "base": "base",
        "out": Path("recipes/mine.yaml"),
        "name": None,
        "template": None,
        "classes": ["gpt4=GPT4 Correct:1", "gpt35=GPT3:0"],
        "class_of": [],
        "class_field": [],
        "format": [],
        "max_length": None,
        "epochs": None,
        "gpus": None,
        "bad_rows": None,
        "adapter": None,
        "sample_rows": 1000,
        "overwrite": False,
    }
    return Options(**{**values, **changes})


def written(*files: str, **changes: Any) -> Path:
    return init(options(*files, **changes), ask=None, say=lambda text: None)


def message_of(*files: str, **changes: Any) -> str:
    before = sorted(Path().rglob("*"))
    with pytest.raises(UserError) as caught:
        written(*files, **changes)
    assert sorted(Path().rglob("*")) == before, "something was written"
    return str(caught.value)


def answers(*texts: str) -> Callable[[str], str]:
    """Somebody at the terminal. The function's attribute `questions` holds what was asked."""
    left = list(texts)

    def ask(question: str) -> str:
        ask.questions.append(question)
        return left.pop(0)

    ask.questions = []
    return ask


def test_the_command_writes_a_recipe_that_every_verb_takes(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [
        "--base",
        "base",
        "--out",
        "mine.yaml",
        "--class",
        "gpt4=GPT4 Correct:1",
        "--class",
        "gpt35=GPT3:0",
        "--gpus",
        "4",
    ]
    assert main(["init", "data/gpt4.jsonl", "data/gpt35.jsonl", *flags]) == 0
    shown = capsys.readouterr().out
    assert "sharegpt" in shown
    assert "data/gpt35.jsonl in the format openchat_3.5, with the condition 'GPT4 Correct' as an example" in shown
    assert "written: mine.yaml" in shown

    recipe = load_recipe(Path("mine.yaml"))
    assert [(s.path, s.format, s.class_name) for s in recipe.data.sources] == [
        ("data/gpt4.jsonl", "messages", "gpt4"),
        ("data/gpt35.jsonl", "sharegpt", "gpt35"),
    ]
    assert {name: (c.condition, c.reward) for name, c in recipe.data.classes.items()} == {
        "gpt4": ("GPT4 Correct", 1.0),
        "gpt35": ("GPT3", 0.0),
    }
    assert (recipe.model.template, recipe.optimizer.learning_rate) == ("openchat_3.5", "auto")
    assert recipe.train.packs_per_step % 4 == 0

    manifest, _ = prepare_recipe(recipe, num_workers=1, progress=lambda rows: None)
    weights = {row.name: row.weight for row in manifest.classes}
    assert weights["gpt4"] == 1.0
    assert weights["gpt35"] == pytest.approx(0.1, rel=1e-6)
    assert manifest.ledger.read == manifest.ledger.kept == 300
    assert manifest.ledger.truncated == 0
    assert manifest.splits["validation"].conversations > 0


def test_every_key_has_a_comment(here: Path) -> None:
    lines = written().read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines):
        is_section = line.endswith(":")
        is_class = "{condition:" in line
        assert is_section or is_class or "#" in line or "#" in lines[number - 1], line
        assert len(line) <= 128


def test_it_runs_without_torch(here: Path) -> None:
    code = "import sys; from ochat_train.cli.main import main; print(main(sys.argv[1:]), 'torch' in sys.modules)"
    arguments = ["init", "data/gpt4.jsonl", "--base", "base", "--out", "a.yaml", "--class", "gpt4=:1"]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, "PYTHONPATH": PYTHONPATH},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.splitlines()[-1] == "0 False", done.stderr


# ---- what is missing, wrong or exists already ----


def test_all_that_is_missing_is_one_error_that_lists_the_flags(here: Path) -> None:
    message = message_of(base=None, out=None, classes=["gpt4=GPT4 Correct:1"])
    assert "--base" in message
    assert "--out" in message
    assert "--class gpt35=CONDITION:REWARD" in message
    assert "--class gpt4" not in message


def test_the_problems_of_all_files_come_together(here: Path) -> None:
    Path("data/empty.jsonl").touch()
    write_jsonl(Path("data/odd.jsonl"), [{"text": "x"}])
    message = message_of("data/empty.jsonl", "data/gpt4.jsonl", "data/odd.jsonl", "data/nothing.jsonl")
    assert "data/empty.jsonl: holds no rows" in message
    assert "data/odd.jsonl: no known layout: data/odd.jsonl:1: a single text" in message
    assert "data/nothing.jsonl: no such file" in message


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"classes": ["gpt4=GPT4 Correct"]}, "the reward is missing"),
        ({"classes": ["gpt4=GPT4 Correct:high"]}, "'high' is not a number"),
        ({"classes": ["gpt4=x:nan"]}, "'nan' is not a number"),
        ({"classes": ["gtp4=GPT4 Correct:1"]}, "with one of the classes: gpt4, gpt35"),
        ({"class_of": ["data/other.jsonl=expert"]}, "data/other.jsonl is not one of the files"),
        ({"class_of": ["expert"]}, "expected FILE="),
        ({"class_field": ["data/gpt4.jsonl=quality"]}, "no row has such a field"),
        ({"class_of": ["data/gpt4.jsonl=a"], "class_field": ["data/gpt4.jsonl=a"]}, "not both"),
        ({"format": ["data/gpt4.jsonl=chat"]}, "unknown format"),
        ({"format": ["data/gpt4.jsonl=sharegpt"]}, "key `conversations` is missing"),
        ({"base": "nowhere"}, "not a Hub id"),
        ({"base": "data"}, "holds no config.json"),
        ({"name": "a b"}, "--name a b"),
        ({"template": "openchat"}, "templates: openchat_3.2, openchat_3.5"),
        ({"out": Path("data/gpt4.jsonl")}, "ends in .yaml"),
        ({"out": Path("data/gpt4.jsonl"), "overwrite": True}, "ends in .yaml"),
        ({"out": Path("8")}, "ends in .yaml"),
        ({"out": Path("data"), "overwrite": True}, "is a folder"),
        ({"out": Path("data/gpt4.jsonl/mine.yaml")}, "cannot be written"),
        ({"classes": ["gpt4=a:9999", "gpt35=b:0"]}, "a weight below 1e-30"),
    ],
)
def test_wrong_flags(here: Path, changes: dict[str, Any], rule: str) -> None:
    assert rule in message_of(**changes)


def test_a_file_named_twice_is_an_error(here: Path) -> None:
    assert "named twice" in message_of("data/gpt4.jsonl", "data/gpt4.jsonl")


def test_a_recipe_is_replaced_only_when_told(here: Path) -> None:
    path = written()
    path.write_text("mine", encoding="utf-8")
    assert "--overwrite" in message_of()
    assert path.read_text(encoding="utf-8") == "mine"
    written(overwrite=True)
    assert load_recipe(path).name == "mine"
    assert [file.name for file in path.parent.iterdir()] == ["mine.yaml"]


# ---- decisions about classes ----


def labelled(path: str, field: str = "source", values: tuple[Any, ...] = ("a", "b")) -> str:
    write_jsonl(Path(path), [{**row, field: values[n % len(values)]} for n, row in enumerate(conversations(12))])
    return path


def test_a_field_with_few_values_names_the_classes(here: Path) -> None:
    recipe = load_recipe(written(labelled("x.jsonl"), classes=["a=A:1", "b=B:0"]))
    assert (recipe.data.sources[0].class_name, recipe.data.sources[0].class_field) == (None, "source")
    assert set(recipe.data.classes) == {"a", "b"}
    manifest, _ = prepare_recipe(recipe, num_workers=1, progress=lambda rows: None)
    assert {row.name: row.conversations for row in manifest.classes} == {"a": 6, "b": 6}


def test_a_field_of_each_answer_names_the_classes(here: Path) -> None:
    answers = [{"answer": "Yes, it is.", "model": "large"}, {"answer": "No.", "model": "small"}]
    write_jsonl(Path("x.jsonl"), [{"prompt": "Is it?", "answers": answers[: 1 + n % 2]} for n in range(12)])
    recipe = load_recipe(written("x.jsonl", classes=["large=A:1", "small=B:0"]))
    assert recipe.data.sources[0].class_field == "answers.model"
    manifest, _ = prepare_recipe(recipe, num_workers=1, progress=lambda rows: None)
    assert {row.name: row.conversations for row in manifest.classes} == {"large": 12, "small": 6}


def test_a_field_that_says_something_else_does_not(here: Path) -> None:
    recipe = load_recipe(written(labelled("x.jsonl", "language"), classes=["x=A:1"]))
    assert recipe.data.sources[0].class_name == "x"
    recipe = load_recipe(
        written("x.jsonl", out=Path("b.yaml"), classes=["a=A:1", "b=B:0"], class_field=["x.jsonl=language"])
    )
    assert recipe.data.sources[0].class_field == "language"


def test_a_class_named_like_the_file_or_by_a_flag_rules(here: Path) -> None:
    assert load_recipe(written(labelled("x.jsonl"), classes=["x=A:1"])).data.sources[0].class_name == "x"
    recipe = load_recipe(written("x.jsonl", out=Path("b.yaml"), classes=["best=A:1"], class_of=["x.jsonl=best"]))
    assert recipe.data.sources[0].class_name == "best"


def test_openchat_rows_keep_their_own_conditions_and_weights(here: Path) -> None:
    items = [{"role": "user", "content": "Hi", "weight": 0.0}, {"role": "assistant", "content": "Hello", "weight": 0.3}]
    write_jsonl(Path("o.jsonl"), [{"items": items, "condition": ["GPT4", "GPT3"][n % 2]} for n in range(10)])
    with pytest.raises(UserError, match=r"--class GPT4=A:1: every row carries its own condition; leave --class out"):
        written("o.jsonl", classes=["GPT4=A:1"])
    recipe = load_recipe(written("o.jsonl", classes=[]))
    assert not recipe.data.classes
    assert recipe.data.sources[0].class_name is recipe.data.sources[0].class_field is None
    manifest, _ = prepare_recipe(recipe, num_workers=1, progress=lambda rows: None)
    assert sorted(row.name for row in manifest.classes) == ["GPT3", "GPT4"]
    assert [row.largest_weight for row in manifest.classes] == [pytest.approx(0.3)] * 2


def test_names_conditions_and_paths_of_any_characters_come_back(here: Path) -> None:
    values = ('x: #"y"\n', "a", "a=b", "1", "é🙂")
    path = labelled("we ird: #'\"é.jsonl", "tag", values)
    classes = [f'{name}=the "{n}": {n}:{n}' for n, name in enumerate(values)]
    recipe = load_recipe(written(path, classes=classes, class_field=[f"{path}=tag"]))
    assert recipe.data.sources[0].path == path
    assert {name: (c.condition, c.reward) for name, c in recipe.data.classes.items()} == {
        name: (f'the "{n}": {n}', float(n)) for n, name in enumerate(values)
    }


def test_files_of_the_same_name_get_different_classes() -> None:
    assert default_names(["a/train.jsonl", "b/train.jsonl", "gpt4.json", "data/*.jsonl"]) == {
        "a/train.jsonl": "a-train",
        "b/train.jsonl": "b-train",
        "gpt4.json": "gpt4",
        "data/*.jsonl": "data",
    }


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        ([".", "data.jsonl"], ["data", "data.jsonl"]),
        ([".", "data"], ["data", "data-2"]),
        (["d/x.jsonl", "d/x.json"], ["d-x.jsonl", "d-x.json"]),
        (["/a/q.jsonl", "/b/q.jsonl"], ["a-q", "b-q"]),
        (["/a/q.jsonl", "a/q.jsonl", "../a/q.jsonl", "a-q-2"], ["a-q.jsonl", "a-q.jsonl-2", "a-q.jsonl-3", "a-q-2"]),
        (["a/b.x", "c/b.x", "a-b.x"], ["a-b.x", "c-b", "a-b.x-2"]),
        (["..", "/", "*", "**/*"], ["data", "data-2", "data-3", "data-4"]),
    ],
)
def test_every_file_has_a_class_name_of_its_own(paths: list[str], names: list[str]) -> None:
    assert default_names(paths) == dict(zip(paths, names, strict=True))


def test_the_working_folder_can_be_a_source(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("data/gpt35.jsonl").rename("data/data.jsonl")
    Path("data/gpt4.jsonl").unlink()
    monkeypatch.chdir("data")
    classes = ["data=A:1", "data.jsonl=B:0"]
    recipe = load_recipe(written(".", "data.jsonl", base="../base", out=Path("../mine.yaml"), classes=classes))
    assert [source.class_name for source in recipe.data.sources] == ["data", "data.jsonl"]


TEXTS = ("plain", "yes", "null", "1", "1e5", "~", "", "a: b", "#x", "*x", "- x", "é", 'q"\\\n\t', "on", "x/y.z")
ODD_TEXTS = ("a\x85b", "a\u2028b", "\x7f", "\ufffe", "\ufeffa", "\x00", "🙂", "a \r b", "long word " * 50)


@pytest.mark.parametrize("text", [*TEXTS, *ODD_TEXTS])
def test_values_are_written_so_that_yaml_reads_them_back(text: str) -> None:
    assert yaml.safe_load(f"key: {yaml_text(text)}") == {"key": text}
    assert yaml.safe_load(f"{{key: {yaml_text(text)}, {yaml_text(text)}: 1}}") == {"key": text, text: 1}


def test_odd_characters_in_names_conditions_and_fields_come_back(here: Path) -> None:
    odd = "a\x85b\x7f\ufffe\u2028c"
    Path("base").rename(f"base{odd}")
    rows = [{**row, f"score{odd}": number / 7} for number, row in enumerate(conversations(12))]
    write_jsonl(Path(f"{odd}.jsonl"), rows)
    out = Path(f"{odd}.yaml")
    path = written(f"{odd}.jsonl", base=f"base{odd}", out=out, name="mine", classes=[f"{odd}={odd}:1"])
    recipe = load_recipe(path)
    assert recipe.model.path == f"base{odd}"
    assert {name: spec.condition for name, spec in recipe.data.classes.items()} == {odd: odd}
    assert recipe.data.sources[0].path == f"{odd}.jsonl"


@pytest.mark.parametrize(
    ("right", "wrong"), [("GPT4 Correct", "GPT4 Corect"), ("path: base", "path: bass"), ("gpt4.j", "gpt5.j")]
)
def test_a_recipe_that_reads_back_as_another_is_not_written(here: Path, right: str, wrong: str) -> None:
    draft, out = draft_recipe(options(), ask=None, say=lambda text: None)
    text = recipe_text(draft, out=str(out))
    assert right in text
    with pytest.raises(UserError, match="reads back as the same"):
        write_recipe(text.replace(right, wrong), draft, out)
    assert not out.exists()
    write_recipe(text, draft, out)
    assert out.read_text(encoding="utf-8") == text


def test_a_recipe_that_does_not_load_is_reported_under_its_own_name(here: Path) -> None:
    draft, out = draft_recipe(options(), ask=None, say=lambda text: None)
    with pytest.raises(UserError) as caught:
        write_recipe(recipe_text(draft, out=str(out)).replace("  epochs: 3 ", "  epoch: 3 "), draft, out)
    assert {problem.place.partition(":")[0] for problem in caught.value.problems} == {str(out)}
    assert "train.epoch: unknown key; did you mean `epochs`?" in str(caught.value)


def test_other_layouts_are_written_into_the_recipe_and_prepare(here: Path) -> None:
    """A list under another name with marks, and pairs of answers, whose answers are the classes."""
    turns = [("user", "Hi there"), ("assistant", "Wrong."), ("user", "Again"), ("assistant", "Right.")]
    messages = [{"role": role, "content": text, "train": text == "Right."} for role, text in turns]
    write_jsonl(Path("data/talk.jsonl"), [{"conversation": messages, "note": "Said on a sunny day."}] * 30)
    write_jsonl(Path("data/pairs.jsonl"), [{"prompt": "Hi there", "chosen": "Right.", "rejected": "Wrong."}] * 30)
    shown: list[str] = []
    classes = ["talk=A:1", "chosen=B:1", "rejected=C:0"]
    path = init(options("data/talk.jsonl", "data/pairs.jsonl", classes=classes), ask=None, say=shown.append)
    assert "read as `format: messages, fields: {messages: conversation}`" in shown[0]
    assert "the field `note` holds text" in shown[0]
    assert "Wrong.«<|end_of_turn|>»{GPT4 Correct User:}" in shown[0]
    assert "[1| Right.«<|end_of_turn|>»]" in shown[0]
    with pytest.raises(UserError, match="the field `note` holds text"):
        prepare_recipe(load_recipe(path), num_workers=1, progress=lambda rows: None)
    recipe = load_recipe(path, ["data.ignore_fields=[note]"])
    manifest, _ = prepare_recipe(recipe, num_workers=1, progress=lambda rows: None)
    counts = {row.name: (row.conversations, row.supervised_tokens) for row in manifest.classes}
    assert counts["chosen"][0] == counts["rejected"][0] == counts["talk"][0] == 30
    assert counts["talk"][1] == counts["chosen"][1]  # `Right.` alone


def test_bad_rows_are_said_and_left_out_only_when_told(here: Path) -> None:
    with Path("data/gpt4.jsonl").open("a", encoding="utf-8") as stream:
        stream.write('{"messages": []}\n')
    shown: list[str] = []
    init(options(), ask=None, say=shown.append)
    assert "no_messages: 1" in shown[0]
    assert "1 of 301 sampled rows cannot be read; repair them" in shown[1]
    assert load_recipe(Path("recipes/mine.yaml")).data.bad_rows == "error"
    assert load_recipe(written(bad_rows="drop", overwrite=True)).data.bad_rows == "drop"


@pytest.mark.parametrize(
    ("flag", "answer", "unreadable", "value"),
    [
        (None, None, None, "error"),
        (None, None, "1 of 2 rows", "error"),
        (None, "drop", "1 of 2 rows", "drop"),
        ("drop", None, "1 of 2 rows", "drop"),
        ("error", None, None, "error"),
    ],
)
def test_rows_are_left_out_only_when_a_flag_or_a_person_says_so(
    flag: str | None, answer: str | None, unreadable: str | None, value: str
) -> None:
    assert choose_bad_rows(flag, answer, unreadable=unreadable).value == value


@pytest.mark.parametrize(
    ("file", "name"), [("mine.yaml", "mine"), ("a b.yml", "a-b"), ("._-x.yaml", "x"), ("é.yaml", "mine")]
)
def test_a_run_is_named_like_its_recipe(file: str, name: str) -> None:
    assert recipe_name(Path("recipes", file)) == name


def test_the_prepared_dataset_never_lies_in_a_folder_that_is_read(here: Path) -> None:
    Path("data/gpt35.jsonl").unlink()
    recipe = load_recipe(written("data", classes=["data=x:1"]))
    for _ in range(2):  # the second time with the prepared files of the first
        manifest, _ = prepare_recipe(recipe, num_workers=1, progress=lambda rows: None)
        assert manifest.ledger.read == 120


# ---- on a terminal ----


def test_enter_takes_the_defaults_and_wrong_answers_are_asked_again(here: Path) -> None:
    ask = answers("nowhere", "base", "A", "good", "1", "", "", "0", "", "")
    path = init(options(labelled("x.jsonl"), base=None, out=None, classes=[]), ask=ask, say=lambda text: None)
    recipe = load_recipe(path)
    questions = [question.splitlines()[-1] for question in ask.questions]
    starts = ["Base", "Base", "Class of x.jsonl", "Condition of class A", "Reward of class A"]
    assert recipe.data.sources[0].class_name == "A"
    assert [q[: len(s)] for q, s in zip(questions, starts, strict=False)] == starts


def test_nobody_is_asked_which_class_is_better_by_default(here: Path) -> None:
    ask = answers("", "", "", "0", "", "", "", "1", "", "")
    path = init(options(labelled("x.jsonl"), out=None, classes=[]), ask=ask, say=lambda text: None)
    questions = ask.questions
    assert not any("Reward" in question and "[" in question for question in questions)
    assert {name: spec.reward for name, spec in load_recipe(path).data.classes.items()} == {"a": 0.0, "b": 1.0}


# ---- decisions about the base and sizes ----


def write_base(folder: Path, **config: Any) -> str:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return str(folder)


NO_WIDTH = "a low value to start from: the base's configuration names no width, which `auto` needs"
FAMILY_RULE = "OpenChat's rule for this family of models"


@pytest.mark.parametrize(
    ("config", "template", "learning_rate"),
    [
        (MISTRAL, "openchat_3.5", FAMILY_RULE),
        ({"model_type": "llama", "vocab_size": 128_256}, "openchat_3.6", FAMILY_RULE),
        ({"model_type": "llama", "vocab_size": 128_264}, "openchat_3.6", FAMILY_RULE),
        ({"model_type": "llama", "vocab_size": 32_000}, "openchat_3.2", FAMILY_RULE),
        ({"model_type": "llama", "vocab_size": 32_002}, "openchat_3.2", FAMILY_RULE),
        ({"model_type": "gemma", "vocab_size": 256_000}, "chatml", FAMILY_RULE),
        (
            {"model_type": "llama", "vocab_size": 49_152},
            "chatml",
            "OpenChat's rule for Llama-2: it has none for other bases of the Llama architecture",
        ),
        (
            {"model_type": "qwen2", "vocab_size": 151_936, "hidden_size": 896},
            "chatml",
            "by the base's width: OpenChat has no rule for Qwen2, Qwen2.5 and Qwen3, so compare other rates",
        ),
        (
            {"model_type": "gemma3", "text_config": {"hidden_size": 2560, "vocab_size": 262_208}},
            "chatml",
            "by the base's width: OpenChat has no rule for Gemma 3",
        ),
        (
            {"model_type": "gpt2", "vocab_size": 50_257, "n_embd": 768},
            "chatml",
            "by the base's width: OpenChat has no rule for other dense bases",
        ),
        (
            {"model_type": "unheard", "vocab_size": 50_257, "hidden_size": 768},
            "chatml",
            "by the base's width: OpenChat has no rule for this base",
        ),
        ({"model_type": "unheard", "vocab_size": 151_936}, "chatml", None),
    ],
)
def test_template_and_learning_rate_follow_the_configuration(
    config: dict[str, Any], template: str, learning_rate: str | None, here: Path
) -> None:
    path = written(base=write_base(Path("mistral-like"), **config))
    recipe = load_recipe(path)
    assert recipe.model.template == template
    assert recipe.optimizer.learning_rate == (1e-5 if learning_rate is None else "auto")
    rule = NO_WIDTH if learning_rate is None else learning_rate
    assert rule in " ".join(path.read_text(encoding="utf-8").replace("#", " ").split())


@pytest.mark.parametrize(
    ("tokens", "template", "fits"),
    [
        (("<|im_start|>", "<|im_end|>"), "chatml", True),
        (("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"), "openchat_3.6", True),
        (("<|eot_id|>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>"), "chatml", True),
        (("<|start_header_id|>", "<|end_header_id|>"), "chatml", False),  # not all of them
        (("<|end_of_turn|>",), "openchat_3.5", True),
        ((), "chatml", False),
    ],
)
def test_the_template_is_one_whose_control_tokens_the_tokenizer_has(
    tokens: tuple[str, ...], template: str, fits: bool, here: Path
) -> None:
    base = Path(write_base(Path("fitting"), model_type="qwen3", vocab_size=151_936, hidden_size=64))
    write_small_tokenizer(base)
    description = json.loads((base / "tokenizer.json").read_text(encoding="utf-8"))
    kinds = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    first = len(description["model"]["vocab"])
    description["added_tokens"] += [{"id": first + n, "content": token, **kinds} for n, token in enumerate(tokens)]
    (base / "tokenizer.json").write_text(json.dumps(description), encoding="utf-8")
    path = written(base=str(base))
    assert load_recipe(path).model.template == template
    text = " ".join(path.read_text(encoding="utf-8").replace("#", " ").split())
    assert ("the tokenizer has its control tokens" in text) == fits


def test_a_base_whose_configuration_names_no_vocabulary(here: Path) -> None:
    base = write_base(Path("nested"), model_type="gemma3", text_config={})
    assert load_recipe(written(base=base)).model.template == "chatml"


@pytest.mark.parametrize(
    ("name", "template"),
    [
        ("mistralai/Mistral-7B-v0.1", "openchat_3.5"),
        ("meta-llama/Meta-Llama-3-8B", "openchat_3.6"),
        ("meta-llama/Llama-2-7b-hf", "openchat_3.2"),
        ("Qwen/Qwen2.5-7B", "chatml"),
    ],
)
def test_a_base_that_is_not_here_is_known_by_its_name(name: str, template: str, here: Path) -> None:
    shown: list[str] = []
    init(options(base=name), ask=None, say=shown.append)
    assert load_recipe(Path("recipes/mine.yaml")).model.template == template
    assert f"estimated from characters: the tokenizer of {name} is not on this machine" in shown[0]


def test_a_base_in_the_hub_cache_is_used(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = Path("cache/models--org--thing/snapshots/abc").absolute()
    snapshot.mkdir(parents=True)
    for file in Path("base").iterdir():
        (snapshot / file.name).write_bytes(file.read_bytes())
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs/main").write_text("abc", encoding="utf-8")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(Path("cache").absolute()))
    shown: list[str] = []
    init(options(base="org/thing"), ask=None, say=shown.append)
    assert "estimated" not in shown[0]
    assert load_recipe(Path("recipes/mine.yaml")).model.template == "openchat_3.5"  # by its configuration, not its name


def test_the_longest_conversations_fit_and_the_base_sets_the_limit() -> None:
    lengths = [np.array([100] * 999 + [7000]), np.array([900] * 100)]
    assert sizes.choose_max_length(lengths, max_positions=None, exact=True).value == 1024  # 99 % of each source
    assert sizes.choose_max_length(lengths, max_positions=300, exact=True).value == 300
    assert sizes.choose_max_length([np.array([10**6])], max_positions=None, exact=True).value == 8192
    assert sizes.choose_max_length([np.array([1])], max_positions=None, exact=True).value == 512


@pytest.mark.parametrize("total_tokens", [1_000, 300_000, 5_000_000, 80_000_000, 10**10])
@pytest.mark.parametrize("gpus", [1, 3, 8, 64])
@pytest.mark.parametrize("max_length", [300, 512, 8192])
def test_steps_are_whole_packs_on_every_gpu(total_tokens: int, gpus: int, max_length: int) -> None:
    pack = sizes.choose_pack_length(max_length=max_length, total_tokens=total_tokens, gpus=gpus).value
    step = sizes.choose_tokens_per_step(pack_length=pack, total_tokens=total_tokens, gpus=gpus).value
    assert pack >= max_length
    assert step % (pack * gpus) == 0
    assert step <= max(655_360, pack * gpus)
    assert total_tokens / step >= 50 or step == pack * gpus


def test_few_prompts_are_not_held_out() -> None:
    assert sizes.choose_validation_ratio(199).value == 0.0
    for num_prompts in (200, 2_000, 200_000, 10**7):
        ratio = sizes.choose_validation_ratio(num_prompts).value
        assert 0.01 <= ratio <= 0.1
        assert ratio * num_prompts >= 20
