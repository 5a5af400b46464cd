"""Every verb is one record: in its own file, in the table of `ochat`, and in the reference."""

from __future__ import annotations

import importlib
import pkgutil
import re
import shlex

import pytest

from data_pipeline.look.raw import SAMPLED_ROWS
from ochat_train import cli
from ochat_train.cli.main import VERBS, build_parser, main
from ochat_train.cli.verb import Verb
from tests.support.processes import ROOT


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
    options = build_parser().parse_args([verb.name, *shlex.split(command.partition(" > ")[0])])
    assert options.run is verb.run
    assert hasattr(options, "recipe") == hasattr(options, "overrides") == verb.takes_recipe
    assert options.debug is False


def test_the_help_of_init_names_how_many_rows_it_looks_at(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["init", "--help"])
    assert f"rows of a file to look at (default {SAMPLED_ROWS})" in " ".join(capsys.readouterr().out.split())
