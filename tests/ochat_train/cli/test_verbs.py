"""Every verb is one record: in its own file, in the table of `ochat`, and in the reference."""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import re
import shlex

import pytest

from data_pipeline.look.raw import SAMPLED_ROWS
from ochat_train import cli
from ochat_train.cli.main import VERBS, main
from ochat_train.cli.parser import command_parser, verb_parsers
from ochat_train.cli.verb import Group, Verb
from tests.support.processes import ROOT
from tests.support.small_recipe import RecipeFactory


def test_every_record_is_in_the_table() -> None:
    names = [found.name for found in pkgutil.iter_modules(cli.__path__) if found.name != "main"]
    modules = {name: importlib.import_module(f"{cli.__name__}.{name}") for name in names}
    records = {
        name: value for name, module in modules.items() for value in vars(module).values() if isinstance(value, Verb)
    }
    assert {verb.name: verb for verb in VERBS} == records, "each file has one verb, which is named like it"
    assert len(VERBS) == len(records)


def test_every_verb_is_documented_in_the_order_of_help() -> None:
    page = (ROOT / "docs" / "command-line.md").read_text(encoding="utf-8")
    sections = re.findall(r"^## `ochat (\w+)`\n\n(.+)\n\n```bash\n(.+)\n```", page, flags=re.MULTILINE)
    assert sections == [(verb.name, verb.summary, verb.example) for verb in VERBS]


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.name)
def test_the_example_of_a_verb_is_a_command_that_runs_it(verb: Verb) -> None:
    _, _, command = verb.example.partition("--module ochat_train" if verb.name == "train" else f"ochat {verb.name}")
    options = command_parser(VERBS).parse_args([verb.name, *shlex.split(command.partition(" > ")[0])])
    assert options.run is verb.run
    assert hasattr(options, "recipe") == hasattr(options, "overrides") == verb.takes_recipe
    assert options.debug is False


def test_the_help_of_init_names_how_many_rows_it_looks_at(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["init", "--help"])
    assert f"rows of a file to look at (default {SAMPLED_ROWS})" in " ".join(capsys.readouterr().out.split())


def test_help_lists_every_verb_with_its_summary_under_its_group(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    shown = capsys.readouterr().out
    headings = [shown.index(f"\n{group.value}:\n") for group in Group]
    assert headings == sorted(headings)
    for verb in VERBS:
        place = shown.index(f"\n  {verb.name} ")
        group = list(Group)[max(n for n, heading in enumerate(headings) if heading < place)]
        assert group is verb.group
        assert verb.summary in " ".join(shown[place:].split())


def valued_flags() -> list[tuple[str, argparse.Action]]:
    parsers = verb_parsers(command_parser(VERBS))
    return [
        (name, action)
        for name, parser in parsers.items()
        for action in parser._actions
        if action.nargs != 0 and action.help != argparse.SUPPRESS and action.option_strings
    ]


def test_help_names_every_value_and_says_its_default() -> None:
    for verb, action in valued_flags():
        where = f"{verb} {action.option_strings[0]}"
        assert action.help, where
        assert action.choices or action.metavar, where
        assert action.metavar != action.dest.upper() or action.metavar in {"RECIPE", "CONDITION", "PROMPT", "URL"}, (
            where
        )
        if action.default not in (None, "", []):
            assert "default" in action.help, where


def test_numbers_are_checked_where_they_are_read() -> None:
    """NaN, infinity and numbers below 0 would be tracebacks later. A seed of PyTorch may be any number."""
    unchecked = {f"{verb} {action.option_strings[0]}" for verb, action in valued_flags() if action.type in (int, float)}
    assert unchecked == {"chat --seed"}


@pytest.mark.parametrize(
    ("arguments", "usage", "problem"),
    [
        (
            ["eval", "e", "--suite", "s", "--answer-pattern", "["],
            "ochat eval",
            "argument --answer-pattern: '[' is no regular expression: unterminated character set at position 0",
        ),
        (["inspect", "run", "b", "c"], "ochat inspect", "unexpected arguments: b c"),
        (["plan", "r.yaml", "--gpuss=8"], "ochat plan", "unknown flag: --gpuss=8; did you mean `--gpus`?"),
        (["prepare"], "ochat prepare", "the following arguments are required: RECIPE"),
        (["trian", "r.yaml"], "ochat", "`trian` is not a verb; did you mean `train`?"),
        ([], "ochat", "the following arguments are required: VERB"),
    ],
)
def test_a_wrong_command_shows_the_usage_of_the_right_verb(
    arguments: list[str], usage: str, problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    shown = capsys.readouterr().err
    assert shown.startswith(f"usage: {usage} [-h]")
    assert shown.endswith(f"{usage}: error: {problem}; see {usage} --help\n")


@pytest.mark.parametrize("word", ["yes", "true", "latest", "runs/none"])
def test_a_resume_that_is_no_checkpoint_is_refused_before_anything_is_loaded(
    word: str, make_recipe: RecipeFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(make_recipe()), "--resume", word]) == 2
    assert capsys.readouterr().err == (
        f"ochat train: --resume {word}: no such folder; give `auto`, `never` or the folder of a checkpoint "
        "(OUTPUT_DIR/checkpoints/step-...)\n"
    )
