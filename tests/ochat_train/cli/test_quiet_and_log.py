"""`--quiet` and `--log-file`, which every verb has."""

from __future__ import annotations

import argparse
import os
import re
import resource
from collections.abc import Callable
from pathlib import Path

import pytest

from data_pipeline.errors import UserError
from ochat_train.cli import main as main_module
from ochat_train.cli.main import main
from ochat_train.cli.schema import SCHEMA
from ochat_train.cli.verb import Verb
from ochat_train.system.messages import print_message, print_notice, print_result

TIME = r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d "


def speak(options: argparse.Namespace) -> None:
    print_notice("a notice")
    print_message("a warning\nof two lines")
    print_result("a result")
    raise UserError("the place", "a problem")


@pytest.fixture
def verb_that(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[argparse.Namespace], None]], None]:
    """Let `ochat schema` run a function."""

    def install(run: Callable[[argparse.Namespace], None]) -> None:
        verb = Verb(
            name="schema", group=SCHEMA.group, summary="", example="", add_arguments=SCHEMA.add_arguments, run=run
        )
        monkeypatch.setattr(main_module, "VERBS", (verb,))

    return install


Install = Callable[[Callable[[argparse.Namespace], None]], None]


def logged(path: Path) -> list[str]:
    """The lines of a log without their times, which each of them has."""
    lines = path.read_text(encoding="utf-8").splitlines()
    assert all(re.match(TIME, line) for line in lines)
    return [re.sub(TIME, "", line) for line in lines]


def test_quiet_leaves_out_notices_alone(verb_that: Install, capsys: pytest.CaptureFixture[str]) -> None:
    verb_that(speak)
    assert main(["schema"]) == 2
    loud = capsys.readouterr()
    assert main(["schema", "--quiet"]) == 2
    quiet = capsys.readouterr()
    assert loud.err == "a notice\na warning\nof two lines\nochat schema: the place: a problem\n"
    assert quiet.err == loud.err.removeprefix("a notice\n")
    assert quiet.out == loud.out == "a result\n"


def test_a_log_file_gets_everything_and_keeps_what_it_has(
    verb_that: Install, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    verb_that(speak)
    log = tmp_path / "a b.log"
    assert main(["schema", "--log-file", str(log)]) == 2
    once = [
        f"ochat schema --log-file '{log}'",
        "a notice",
        "a warning",
        "of two lines",
        "a result",
        "ochat schema: the place: a problem",
    ]
    assert logged(log) == once
    assert main(["schema", "--quiet", "--log-file", str(log)]) == 2
    assert logged(log)[len(once) + 1 :] == once[1:], "quiet or not"
    monkeypatch.setenv("RANK", "3")
    log.unlink()
    assert main(["schema", "--log-file", str(log)]) == 2
    assert "[rank 3] a notice" in logged(log)
    assert main(["schema"]) == 2, "and afterwards nothing is logged any more"
    assert len(logged(log)) == len(once) - 1  # rank 3 does not print the error


def test_the_traceback_of_a_bug_is_in_the_log(verb_that: Install, tmp_path: Path) -> None:
    def fail(options: argparse.Namespace) -> None:
        raise KeyError("a bug")

    verb_that(fail)
    with pytest.raises(KeyError, match="a bug"):
        main(["schema", "--log-file", str(tmp_path / "log")])
    assert logged(tmp_path / "log")[-1] == "KeyError: 'a bug'"


def test_a_log_that_cannot_be_made_ends_the_command_before_it_begins(
    verb_that: Install, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    verb_that(lambda options: pytest.fail("it began"))
    assert main(["schema", "--log-file", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"ochat schema: {tmp_path}: cannot be written: Is a directory")


def test_a_log_on_a_full_disk_ends_nothing_and_is_said_once(
    verb_that: Install, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(options: argparse.Namespace) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (os.path.getsize(log), limits[1]))
        print_message("one")
        print_message("two")

    verb_that(fill)
    log = tmp_path / "log"
    try:
        assert main(["schema", "--log-file", str(log)]) == 0
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    warning = f"warning: {log}: cannot be written: File too large; what follows is not in it\n"
    assert capsys.readouterr().err == f"{warning}one\ntwo\n"
