"""Recipes: every mistake is named with its place, value, rule and remedy, all of them at once; nothing wrong is
accepted.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from data_pipeline.errors import UserError
from ochat_train.recipe.load import load_recipe
from ochat_train.recipe.recipe import Recipe
from ochat_train.recipe.strict_yaml import parse_override
from tests.support.processes import ROOT
from tests.support.recipe_texts import GOOD, changed, message_of, problem_of, write

SOURCES = """
    - {path: a.jsonl, format: sharegpt, class: expert}
    - {path: b.jsonl, format: messages, class: suboptimal}
"""
# What no text may hold: half of a character, and the character that the program keeps for itself.
SURROGATE, RESERVED = r'"\ud800"', r'"\ufdd0"'

# Name of the mistake: `old` becomes `new`; the problem is at the line that holds `at`, has this key, begins with the
# first text and holds the others.
# A rule over several keys is reported at the section that holds them.
ONE_MISTAKE: dict[str, tuple[str, ...]] = {
    # keys
    "unknown key": (
        "epochs: 5",
        "epocs: 5\n  epochs: 5",
        "epocs",
        "train.epocs",
        "unknown key; did you mean `epochs`?",
    ),
    "unknown key like no other": (
        "epochs: 5",
        "epochs: 5\n  zzz: 3",
        "zzz",
        "train.zzz",
        "unknown key; known keys: epochs, pack_length_tokens",
    ),
    "unknown key like a type": (
        "wandb: false",
        "floaty: 1",
        "floaty",
        "tracking.floaty",
        "unknown key; known keys: wandb",
    ),
    "unknown key in a class": (
        "reward: 1.0",
        "reward: 1.0, wieght: 1.0",
        "wieght",
        "data.classes.expert.wieght",
        "unknown key; did you mean `weight`?",
    ),
    "unknown key in a source": (
        "class: expert",
        "class: expert, clas_field: x",
        "clas_field",
        "data.sources.0.clas_field",
        "unknown key",
        "`class_field`?",
    ),
    "name that only the code uses": (
        "class: expert",
        "class_name: expert",
        "class_n",
        "data.sources.0.class_name",
        "unknown",
    ),
    "unknown section": ("tracking: {", "traking: {", "traking", "traking", "unknown key; did you mean `tracking`?"),
    "missing key": ("  epochs: 5\n", "", "train:", "train.epochs", "missing; passes over the training split"),
    "missing key of a class": (
        'condition: "GPT3", ',
        "",
        "suboptimal:",
        "data.classes.suboptimal.condition",
        "missing; text",
    ),
    "missing key of a source": (
        "path: b.jsonl, ",
        "",
        "format: messages",
        "data.sources.1.path",
        "missing; a file of JSON lines",
    ),
    "duplicate key": (
        "epochs: 5",
        "epochs: 5\n  epochs: 6",
        "epochs: 6",
        "train.epochs",
        "duplicate key, first on line 18",
    ),
    "duplicate section": (
        "tracking: {",
        "train: {}\ntracking: {",
        "train: {}",
        "train",
        "duplicate key, first on line 17",
    ),
    "merge key": ("zero_stage: 2", "zero_stage: 2, <<: {}", "<<", "deepspeed.<<", "unknown key", "zero_stage"),
    # types
    "no value": ("epochs: 5", "epochs:", "epochs:", "train.epochs", "None: expected a whole number"),
    "wrong type": ("epochs: 5", "epochs: [1]", "epochs:", "train.epochs", "[1]: expected a whole number"),
    "number in quotes": ("epochs: 5", 'epochs: "5"', "epochs:", "train.epochs", "'5': expected a whole number"),
    "fraction for a count": ("epochs: 5", "epochs: 2.5", "epochs:", "train.epochs", "2.5: expected a whole number"),
    "octal of YAML 1.1": ("epochs: 5", "epochs: 010", "epochs:", "train.epochs", "'010': expected a whole number"),
    "hexadecimal": ("epochs: 5", "epochs: 0x10", "epochs:", "train.epochs", "'0x10': expected a whole number"),
    "true for a count": ("epochs: 5", "epochs: true", "epochs:", "train.epochs", "True: expected a whole number"),
    "number for a text": ("path: org/base", "path: 5", "path: 5", "model.path", "5: expected text; put it in quotes"),
    "text for a number": ("4342945", "4x", "beta:", "data.beta", "'0.4x': expected a number"),
    "number for a list": ("learning_rate: 2e-5", "betas: 5", "betas", "optimizer.betas", "5: expected a list"),
    "number for a mapping": ("zero_stage: 2", "config: 5", "config", "deepspeed.config", "5: expected a mapping"),
    "no for false": (
        "wandb: false",
        "wandb: no",
        "wandb",
        "tracking.wandb",
        "'no': expected `true`, `false`, `online` or",
    ),
    "a section that is a text": (
        "{wandb: false}",
        "hello",
        "tracking",
        "tracking",
        "'hello': expected a section (a mapping",
    ),
    "a source that is a text": (
        "{path: a.jsonl, format: sharegpt, class: expert}",
        "a.jsonl",
        "a.jsonl",
        "data.sources.0",
        "'a.jsonl': expected a sec",
    ),
    # single values
    "zero for a count": ("epochs: 5", "epochs: 0", "epochs:", "train.epochs", "0: input should be greater than 0"),
    "beta 0": ("beta: 0.4342945", "beta: 0", "beta:", "data.beta", "0: input should be greater than 0"),
    "infinite beta": ("beta: 0.4342945", "beta: .inf", "beta:", "data.beta", "'.inf': expected a number"),
    "number too large": ("beta: 0.4342945", "beta: 1e400", "beta:", "data.beta", "inf: expected a finite number"),
    "not a number": ("beta: 0.4342945", "beta: .nan", "beta:", "data.beta", "'.nan': expected a number"),
    "negative weight": ("reward: 1.0", "weight: -0.5", "expert:", "data.classes.expert.weight", "-0.5: ", "equal to 0"),
    "huge weight": (
        "reward: 1.0",
        "weight: 1e300",
        "expert:",
        "data.classes.expert.weight",
        "1e+300: ",
        "equal to 1000000",
    ),
    "tiny weight": (
        "reward: 1.0",
        "weight: 1e-50",
        "expert:",
        "data.classes.expert",
        "weight 1e-50",
        "0 or at least 1e-30",
    ),
    "infinite reward": (
        "reward: 1.0",
        "reward: .inf",
        "expert:",
        "data.classes.expert.reward",
        "'.inf': expected a number",
    ),
    "condition of half a character": (
        '"GPT3"',
        SURROGATE,
        "suboptimal:",
        "data.classes.suboptimal",
        "condition has half of a",
    ),
    "condition that is reserved": (
        '"GPT3"',
        RESERVED,
        "suboptimal:",
        "data.classes.suboptimal",
        "condition holds U+FDD0",
    ),
    "unknown format": (
        "sharegpt",
        "shargpt",
        "shargpt",
        "data.sources.0.format",
        "'shargpt': ",
        "'sharegpt'",
        "'alpaca'",
    ),
    "empty sources": (SOURCES, " []\n", "sources:", "data.sources", "[]: ", "at least 1"),
    "empty model path": ("path: org/base", 'path: ""', 'path: ""', "model.path", "'': ", "at least 1"),
    "empty output_dir": ("output_dir: runs/good", 'output_dir: ""', "output_dir", "output_dir", "'': ", "at least 1"),
    "validation of everything": (
        "  beta",
        "  validation_ratio: 1.0\n  beta",
        "ratio",
        "data.validation_ratio",
        "1.0: ",
        "less than 1",
    ),
    "unknown overlong rule": (
        "  beta",
        "  overlong: cut\n  beta",
        "cut",
        "data.overlong",
        "'cut': ",
        "'truncate'",
        "'error'",
    ),
    "unknown template": (
        "openchat_3.5",
        "openchat_35",
        "template:",
        "model.template",
        "'openchat_35': ",
        "did you mean `openchat_3.5`?",
    ),
    "template like no other": (
        "openchat_3.5",
        "vicuna",
        "template:",
        "model.template",
        "'vicuna': ",
        "openchat_3.6, chatml",
    ),
    "unknown checkpointing": (
        "path: org/base",
        "path: org/base\n  activation_checkpointing: some",
        "some",
        "model.activation_checkpointing",
        "'some': expected `auto`, `none`, `matmuls`, `full`, or `layers: N`",
    ),
    "checkpointing of no layer": (
        "path: org/base",
        "path: org/base\n  activation_checkpointing: {layers: 0}",
        "layers",
        "model.activation_checkpointing",
        "{'layers': 0}: expected `auto`",
    ),
    "compile as text": (
        "path: org/base",
        "path: org/base\n  compile: auto",
        "compile",
        "model.compile",
        "'auto': expected `true` or",
    ),
    "no pack in a micro-batch": (
        "  epochs",
        "  packs_per_micro_batch: 0\n  epochs",
        "packs_per",
        "train.packs_per_micro_batch",
        "0: ",
        "greater than 0",
    ),
    "gradients in float16": (
        "  epochs",
        "  gradient_dtype: float16\n  epochs",
        "gradient_dtype",
        "train.gradient_dtype",
        "'float16'",
        "bfloat16",
    ),
    "zero_stage 4": (
        "zero_stage: 2",
        "zero_stage: 4",
        "zero_stage",
        "deepspeed.zero_stage",
        "4: ",
        "less than or equal to 3",
    ),
    "name that leaves the folder": ("name: good", "name: ../x", "name:", "name", "'../x': ", "letters, digits"),
    "name with a shell command": ("name: good", "name: a;rm", "name:", "name", "'a;rm': ", "letters, digits"),
    "empty name": ("name: good", 'name: ""', "name:", "name", "'': use 1 to 64 letters"),
    "name with a line end": ("name: good", 'name: "good\\n"', "name:", "name", "'good\\n': ", "letters, digits"),
    "negative seed": ("seed: 0", "seed: -1", "seed", "seed", "-1: ", "greater than or equal to 0"),
    "one beta of AdamW": ("learning_rate: 2e-5", "betas: [0.9]", "betas", "optimizer.betas", "[0.9]: ", "at least 2"),
    "AdamW beta 1": ("learning_rate: 2e-5", "betas: [0.9, 1.0]", "betas", "optimizer.betas.1", "1.0: ", "less than 1"),
    # rules over several keys
    "reward and weight": (
        "reward: 1.0",
        "reward: 1.0, weight: 1.0",
        "expert:",
        "data.classes.expert",
        "give one of `reward` and `weight`, not both",
    ),
    "neither reward nor weight": (
        ", reward: 1.0",
        "",
        "data:",
        "data",
        "classes.expert: give `reward` or `weight`, or",
    ),
    "missing beta": ("  beta: 0.4342945\n", "", "data:", "data", "`beta` is missing: rewards need it", "0.4342945"),
    "beta too small": (
        "beta: 0.4342945",
        "beta: 0.001",
        "data:",
        "data",
        "classes.suboptimal: reward 0",
        "0.001",
        "raise beta",
    ),
    "unknown class": (
        "class: expert",
        "class: exprt",
        "data:",
        "data",
        "sources.0.class: unknown class `exprt`; classes: expert, suboptimal",
    ),
    "class and class_field": (
        "class: expert",
        "class: expert, class_field: x",
        "a.jsonl",
        "data.sources.0",
        "give one of `class` and `class_field`",
    ),
    "source without class": (", class: expert", "", "data:", "data", "sources.0: give `class` or `class_field`"),
    "unknown key of classes_from": (
        "  beta: 0.4342945\n",
        "  beta: 0.4342945\n  classes_from: {fields: s, field: s, quantiles: 2, conditions: [a, b]}\n",
        "classes_from",
        "data.classes_from.fields",
        "unknown key; did you mean `field`?",
    ),
    "baseline of another type": (
        "reward: 1.0",
        "baseline: median",
        "expert:",
        "data.classes.expert.baseline",
        "'median': expected a number, or `mean`",
    ),
    "path and config": (
        "path: org/base",
        "path: org/base\n  config: {model_type: llama}",
        "model:",
        "model",
        "give exactly one of `path`",
        "`config`",
    ),
    "neither path nor config": ("  path: org/base\n", "", "model:", "model", "give exactly one of `path`", "`config`"),
    "config without tokenizer": (
        "path: org/base",
        "config: {model_type: llama}",
        "model:",
        "model",
        "`tokenizer` is missing",
    ),
    "config without model_type": (
        "path: org/base",
        "config: {a: 8}\n  tokenizer: a/b",
        "model:",
        "model",
        "config.model_type is missing",
        "`mistral`",
    ),
    "half a pack": ("655360", "655361", "train:", "train", "tokens_per_step 655361", "8192", "the nearest is 655360"),
    "less than a pack": (
        "655360",
        "5",
        "train:",
        "train",
        "tokens_per_step 5",
        "not a multiple",
        "the nearest is 8192",
    ),
    "conversation longer than a pack": (
        "max_length_tokens: 8192",
        "max_length_tokens: 8193",
        "name:",
        "recipe",
        "model.max_length_tokens 8193 is larger than train.pack_length_tokens 8192",
        "raise the pack length",
    ),
    "small states that are offloaded": (
        "learning_rate: 2e-5}\ndeepspeed: {zero_stage: 2",
        "states: 8bit}\ndeepspeed: {offload_optimizer: true",
        "name:",
        "recipe",
        "optimizer.states 8bit cannot be used with deepspeed.offload_optimizer",
        "leave one of the two out",
    ),
    "4 bits at stage 3": (
        "zero_stage: 2}",
        "zero_stage: 3}\nadapter: {type: qlora}",
        "name:",
        "recipe",
        "adapter.type qlora cannot be used with deepspeed.zero_stage 3",
        "use zero_stage 2",
    ),
    "offload at stage 0": (
        "zero_stage: 2",
        "zero_stage: 0, offload_optimizer: true",
        "zero_stage",
        "deepspeed",
        "offload_optimizer needs zero_stage 1, 2 or 3",
    ),
    "parameters offloaded at stage 2": (
        "zero_stage: 2",
        "offload_parameters: true",
        "offload",
        "deepspeed",
        "offload_parameters needs zero_stage 3",
    ),
    "raw ZeRO options that are a number": (
        "zero_stage: 2",
        "config: {zero_optimization: 5}",
        "zero_optimization",
        "deepspeed",
        "config.zero_optimization must be a",
    ),
}


@pytest.mark.parametrize("mistake", ONE_MISTAKE.values(), ids=ONE_MISTAKE.keys())
def test_one_mistake_gives_one_line_with_place_key_value_and_rule(mistake: tuple[str, ...], tmp_path: Path) -> None:
    old, new, at, key, *says = mistake
    text = changed((old, new))
    path = write(tmp_path, text)
    [line] = [number for number, content in enumerate(text.splitlines(), 1) if at in content]
    problem = problem_of(path)
    assert problem.startswith(f"{path}:{line}: {key}: {says[0]}")
    for part in says:
        assert part in problem


def test_a_list_as_a_key_has_no_name_but_a_line(tmp_path: Path) -> None:
    path = write(tmp_path, changed(("epochs: 5", "[a]: 3\n  epochs: 5")))
    assert problem_of(path) == f"{path}:18: a key must be plain text"


def test_a_rule_over_several_keys_does_not_repeat_the_whole_section(tmp_path: Path) -> None:
    path = write(tmp_path, changed(("655360", "655361")))
    rule = "tokens_per_step 655361 is not a multiple of pack_length_tokens 8192; the nearest is 655360"
    assert problem_of(path) == f"{path}:17: train: {rule}"


@pytest.mark.parametrize("value", ["fast", "0", "-1e-5", "true", '"2e-5"', ".inf", "1e400", "[1]", "null"])
def test_a_wrong_learning_rate_is_one_problem(value: str, tmp_path: Path) -> None:
    path = write(tmp_path, changed(("learning_rate: 2e-5", f"learning_rate: {value}")))
    rule = "expected a number above 0 and at most 1e20, or `auto`"
    found = parse_override(value, key="k")[0]
    assert problem_of(path) == f"{path}:21: optimizer.learning_rate: {found!r}: {rule}"


@pytest.mark.parametrize(
    "folder", ["data/prepared", "./data/prepared", "data/prepared/", "data/x/../prepared", "data/prepared/run"]
)
def test_an_output_folder_that_prepare_would_remove_is_refused(folder: str, tmp_path: Path) -> None:
    path = write(tmp_path, changed(("runs/good", folder)))
    assert problem_of(path).startswith(f"{path}:1: recipe: output_dir must not be data.prepared_dir or inside it")


# What the recipe's own keys say to DeepSpeed: a second answer in `deepspeed.config` is refused.
OWNED = {
    "train_batch_size": "train.tokens_per_step",
    "train_micro_batch_size_per_gpu": "train.pack_length_tokens",
    "gradient_accumulation_steps": "train.tokens_per_step",
    "gradient_clipping": "optimizer.grad_clip",
    "optimizer": "optimizer",
    "scheduler": "optimizer.warmup_ratio",
    "bf16": "model.precision",
    "gradient_allreduce_op": "train.loss_denominator",
    "fp16": "model.precision",
    "zero_optimization.stage": "deepspeed.zero_stage",
    "zero_optimization.offload_optimizer": "deepspeed.offload_optimizer",
    "zero_optimization.offload_param": "deepspeed.offload_parameters",
}


@pytest.mark.parametrize(("key", "home"), OWNED.items(), ids=OWNED.keys())
def test_a_raw_deepspeed_key_that_the_recipe_decides_is_refused(key: str, home: str, tmp_path: Path) -> None:
    outer, _, inner = key.partition(".")
    raw = f"{outer}: {{{inner}: 3}}" if inner else f"{outer}: 3"
    path = write(tmp_path, changed(("zero_stage: 2", f"zero_stage: 2, config: {{{raw}}}")))
    assert problem_of(path) == f"{path}:22: deepspeed: config.{key}: `{home}` decides it"


@pytest.mark.parametrize("name", ["float_data", "literal", "constrained", "function-x", "class", "0"])
def test_a_class_may_be_called_anything(name: str, tmp_path: Path) -> None:
    text = GOOD.replace("expert", f'"{name}"')
    assert list(load_recipe(write(tmp_path, text)).data.classes) == [name, "suboptimal"]
    path = write(tmp_path, text.replace("reward: 1.0", "rewrd: 1.0"))
    assert problem_of(path) == f"{path}:11: data.classes.{name}.rewrd: unknown key; did you mean `reward`?"


# What makes the rest of the file unreadable: nothing else can be reported beside it.
UNREADABLE: dict[str, tuple[str, int | None, tuple[str, ...]]] = {
    "alias": (changed(("epochs: 5", "epochs: *a")), 18, ("aliases and anchors are not allowed", "write the value out")),
    "anchor": (changed(("epochs: 5", "epochs: &a 5")), 18, ("aliases and anchors are not allowed",)),
    "anchor bomb": (
        "a: &a [x, x, x, x]\n"
        + "".join(f"{b}: &{b} [*{a}, *{a}, *{a}, *{a}]\n" for a, b in pairwise("abcdefghijklmnop")),
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
    "number of 5,000 digits": (changed(("seed: 0", "seed: " + "9" * 5000)), 2, ("not a number that can be read",)),
    "brackets 500 deep": ("a: " + "[" * 500 + "]" * 500, 1, ("nested too deeply",)),
    "100,000 open brackets": ("a: " + "[" * 100_000, 1, ("nested too deeply for a recipe (more than 32 levels)",)),
    "lists in lists": ("a:\n" + "\n".join("- " * n for n in range(1, 300)), 33, ("nested too deeply",)),
    "300,000 characters": ("a: 1\n" * 60_000, None, ("more than 262,144 characters, so not a recipe",)),
}


@pytest.mark.parametrize(("text", "line", "says"), UNREADABLE.values(), ids=UNREADABLE.keys())
def test_what_makes_a_file_unreadable_is_named_with_its_line(
    text: str, line: int | None, says: tuple[str, ...], tmp_path: Path
) -> None:
    path = write(tmp_path, text)
    message = message_of(path)
    assert message.startswith(f"{path}:{line}: " if line else f"{path}: ")
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
    keys = ["name", "output_dir", "model", "data", "train"]
    assert [problem.split("; ")[0] for problem in problems] == [f"  {path}:1: {key}: missing" for key in keys]


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    missing = tmp_path / "none.yaml"
    init = "`ochat init` writes a recipe for your files"
    assert message_of(missing) == f"{missing}: cannot be read: No such file or directory; {init}"
    assert message_of(tmp_path) == f"{tmp_path}: cannot be read: Is a directory; {init}"
    write(tmp_path, "{}").rename(tmp_path / "lost.yaml")
    assert message_of(missing).endswith(init), "`.yaml` is not what makes names alike"
    write(tmp_path, "{}").rename(tmp_path / "nome.yaml")
    assert message_of(missing).endswith("No such file or directory; did you mean `nome.yaml`?")
    invalid = write(tmp_path, b"name: \xff\n")
    assert message_of(invalid) == f"{invalid}: is not UTF-8 text: byte 6 (0xff), line 1; save the file as UTF-8"
    invalid = write(tmp_path, b"name: a\nseed: \xfc\n")
    assert "byte 14 (0xfc), line 2" in message_of(invalid)


def test_mistakes_in_all_sections_are_reported_at_once(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        changed(
            ("name: good", "name: ../x"),
            ("seed: 0", "seed: -1"),
            ("openchat_3.5", "openchat_35"),
            ("class: expert", "class: exprt"),
            ("655360", "655361"),
            ("learning_rate: 2e-5", "learning_rate: fast"),
            ("zero_stage: 2", "zero_stage: 4"),
            ("keep_last: 2", "keep_lst: 2"),
            ("wandb: false", "wandb: no"),
            ("  beta: 0.4342945", "  beta: 0.4342945\n  beta: 0.4342945"),
        ),
    )
    head, *problems = message_of(path, "foo", "train.epochs.x=1", "optimizer.eps=0").split("\n")
    assert head == f"{path}: 13 problems"
    named = (
        "name: '../x'",
        "seed: -1",
        "'openchat_35'",
        "`exprt`",
        "tokens_per_step 655361",
        "learning_rate: 'fast'",
        "zero_stage: 4",
        "keep_lst: unknown",
        "wandb: 'no'",
        "data.beta: duplicate",
        "--set foo",
        "--set train.epochs.x",
        "--set optimizer.eps: 0",
    )
    assert len(problems) == len(named) == 13
    for part in named:
        assert sum(part in problem for problem in problems) == 1, part


# ---- what is accepted ----


def test_the_good_recipe(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, GOOD))
    assert recipe.optimizer.learning_rate == 2e-5
    assert isinstance(recipe.optimizer.learning_rate, float)
    assert recipe.train.packs_per_step == 80
    assert recipe.model.tokenizer_source == "org/base"
    assert [source.class_name for source in recipe.data.sources] == ["expert", "suboptimal"]
    # what was left out
    assert recipe.train.loss_denominator == "epoch"
    assert (recipe.optimizer.warmup_ratio, recipe.optimizer.betas, recipe.optimizer.eps) == (0.05, [0.9, 0.95], 1e-5)
    assert (recipe.checkpoint.save_every_steps, recipe.tracking.tensorboard) == (None, False)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2e-5", 2e-5),
        ("1.0e-5", 1e-5),
        ("1e3", 1000.0),
        ("-2E+3", -2000.0),
        (".5", 0.5),
        ("1.", 1.0),
        ("0", 0),
        ("-7", -7),
        ("true", True),
        ("false", False),
        ("null", None),
        ("~", None),
        ("no", "no"),
        ("off", "off"),
        ("y", "y"),
        ("0x10", "0x10"),
        ("010", "010"),
        (".inf", ".inf"),
        ("-.inf", "-.inf"),
        (".nan", ".nan"),
        ("1:30", "1:30"),
        ("2020-01-01", "2020-01-01"),
        ("openchat_3.5", "openchat_3.5"),
        ("3.5.1", "3.5.1"),
        ("=", "="),
        ("<<", "<<"),
        ('"5"', "5"),
        ("'true'", "true"),
        ("[1, a]", [1, "a"]),
        ("{a: 1}", {"a": 1}),
        ("{1: a}", {"1": "a"}),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text: str, value: Any) -> None:
    found, problems = parse_override(text, key="k")
    assert problems == []
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_every_zero_stage(stage: int, tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, changed(("zero_stage: 2", f"zero_stage: {stage}"))))
    assert recipe.deepspeed.zero_stage == stage


def test_a_prepared_folder_inside_the_output_folder(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, changed(("output_dir: runs/good", "output_dir: data"))))
    assert recipe.output_dir == "data"


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
        recipe.train.epochs = 7


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
