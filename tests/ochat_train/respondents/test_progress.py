"""How far an evaluation is, in words."""

from __future__ import annotations

import pytest

from ochat_train.cli.main import main
from ochat_train.respondents.progress import AskingProgress
from ochat_train.suites.table import GROUPS, SUITES


def test_the_time_left_is_that_of_the_answers_of_this_start(capfd: pytest.CaptureFixture[str]) -> None:
    now = 100.0
    progress = AskingProgress(1000, 900, clock=lambda: now)
    for _ in range(20):
        now += 1.5
        progress.done()
    progress.close()
    assert progress.line() == "920 of 1,000 answers, 2:00 left"
    lines = capfd.readouterr().err.splitlines()
    assert lines == ["907 of 1,000 answers, 2:20 left", "914 of 1,000 answers, 2:09 left"], "one in ten seconds"


def test_suites_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "nowhere", "--suite", "help"]) == 0
    first_words = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert first_words == [*(kind.name for kind in SUITES), *GROUPS]
