"""The page of an evaluation: figures as in the results, and nothing that a model wrote becomes markup."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest

from ochat_train.report.eval_page import eval_page
from ochat_train.report.pictures import Picture, interval_chart
from ochat_train.suites.results import EvalResults
from tests.support.eval_results import CONDITIONS, NASTY, eval_results

DRAWN: dict[str, Picture] = {}


@pytest.fixture(autouse=True)
def _equal_pictures_are_drawn_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes most of the time of a page."""

    def drawn(*arguments: Any, **named: Any) -> Picture:
        key = repr((arguments, named))
        if key not in DRAWN:
            DRAWN[key] = interval_chart(*arguments, **named)
        return DRAWN[key]

    monkeypatch.setattr("ochat_train.report.eval_page.interval_chart", drawn)


class Reader(HTMLParser):
    """Tables as texts by the heading above them, all tags, and the text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.tags: set[str] = set()
        self.text = ""
        self._in: str | None = None
        self._heading = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        assert not any(
            name.startswith("on") or (name in ("src", "href") and not (value or "").startswith("#"))
            for name, value in attrs
        ), (tag, attrs)
        self._in = tag
        if tag == "h2":
            self._heading = ""
        if tag == "tr":
            self.tables.setdefault(self._heading, []).append([])
        elif tag in ("td", "th"):
            self.tables[self._heading][-1].append("")

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._in == "h2":
            self._heading += data
        elif self._in in ("td", "th") and self.tables.get(self._heading):
            self.tables[self._heading][-1][-1] += data

    def handle_endtag(self, tag: str) -> None:
        self._in = None


def test_tables_have_the_figures_of_the_results() -> None:
    tables = Reader(eval_page(eval_results())).tables
    assert tables["Scores"][1][:3] == ["arithmetic", "GPT4 Correct", "75.0%"]
    assert tables["Scores"][4][:3] == ["talk", "GPT3", "5.00"]
    assert tables["Differences between conditions"][1][1:3] == ["GPT3 minus GPT4 Correct", "-50.0%"]
    assert tables["Questions in the training data"][1][2:4] == ["2 of 12 (16.7%)", "100.0%"]
    assert tables["lm-evaluation-harness"][1][3:5] == ["0.2500", "0.0123"]
    worst = tables["Worst tasks: The arithmetic suite"]
    assert worst[0] == ["task", *CONDITIONS]
    assert [row[1] for row in worst[1:]] == ["75.0%"] * 3


def test_answers_that_conditions_differ_in_come_first_and_are_named() -> None:
    text = Reader(eval_page(eval_results())).text
    first = text[text.index("Answers: The arithmetic suite") :]
    assert first.index("answer 3 under GPT4 Correct") < first.index("answer 3 under GPT3")
    assert "GPT4 Correct: right" in first
    assert "GPT3: wrong" in first
    assert "answer 0 under GPT3" not in text[: text.index("Answers: The talk suite")]  # right under both


@pytest.mark.parametrize("place", ["texts", "turns", "right", "task", "condition", "title", "rule", "reason"])
def test_nothing_of_it_becomes_markup(place: str) -> None:
    plain, nasty = Reader(eval_page(eval_results())), Reader(eval_page(with_nasty(place)))
    assert nasty.tags == plain.tags
    assert "script" not in nasty.tags
    assert re.search(r'document\.title = "taken"', nasty.text)  # the control: it is there, as text
    assert "\u202e" not in nasty.text


def with_nasty(place: str) -> EvalResults:
    results = eval_results()
    questions = list(results.questions)
    if place in ("texts", "turns", "right"):
        questions[3] = replace(questions[3], **{place: (NASTY,)})
    elif place == "reason":
        questions[3] = replace(questions[3], status="failed", reason=NASTY)
        questions = [q for q in questions if q.id == questions[3].id]
    elif place in ("task", "condition"):
        name = {"task": "task 0", "condition": CONDITIONS[0]}[place]
        old = [replace(row, **{place: NASTY}) if getattr(row, place) == name else row for row in results.scores]
        conditions = tuple(NASTY if place == "condition" and c == name else c for c in results.conditions)
        return replace(results, scores=tuple(old), conditions=conditions)
    else:
        return replace(results, suites=tuple(replace(suite, **{place: NASTY}) for suite in results.suites))
    return replace(results, questions=tuple(questions))


def test_a_page_needs_no_suite_of_ours() -> None:
    results = replace(eval_results(), suites=(), scores=(), paired=(), questions=(), contamination=())
    tables = Reader(eval_page(results)).tables
    assert list(tables) == ["lm-evaluation-harness", "Settings and versions"]
