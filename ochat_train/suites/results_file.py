"""`results.json`: the document of results, small enough to keep and to send.

A question is written once, whatever the number of conditions, and what the questions of a task begin with in common
(their worked examples) once for the task. Answers name their question by its place in the list. A field that has its
default is left out. Version 1 of the document repeated all of it for each answer; it can still be read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from data_pipeline.errors import UserError
from data_pipeline.json_files import read_json_object, typed
from ochat_train.suites.results import FORMAT, AnswerResult, EvalResults, QuestionResult
from ochat_train.system.durable import replace_text

RESULTS_FILE = "results.json"
_REPEATING_FORMAT = 1
_ROWS = ("begins", "questions", "answers")  # a line each, at the end of the file
_LEAST_SAVED = 1000  # characters, for which a common beginning is written apart
_REMEDY = "run `ochat eval` again, which writes it"


@dataclass(frozen=True, kw_only=True)
class _Question:
    """A question. begin: place in `begins` of what its first turn begins with, and which `turns` leaves out."""

    suite: str
    id: str
    task: str
    turns: tuple[str, ...] = ()
    right: tuple[str, ...] = ()
    begin: int | None = None


@dataclass(frozen=True, kw_only=True)
class _Answer(AnswerResult):
    """question: place in `questions`."""

    question: int
    condition: str | None


@dataclass(frozen=True, kw_only=True)
class _Rows:
    """begins: texts that several questions begin with. The others: see their classes."""

    begins: tuple[str, ...]
    questions: tuple[_Question, ...]
    answers: tuple[_Answer, ...]


def summary_of(results: EvalResults) -> dict[str, Any]:
    """The document without questions and answers."""
    document = {"format": FORMAT, **asdict(replace(results, questions=()))}
    del document["questions"]
    return document


def document_of(results: EvalResults) -> dict[str, Any]:
    """The document."""
    rows = _packed(results.questions)
    return {
        **summary_of(results),
        "begins": list(rows.begins),
        "questions": _without_defaults(_Question, rows.questions),
        "answers": _without_defaults(_Answer, rows.answers),
    }


def write_results(folder: Path, results: EvalResults) -> Path:
    """Write results.json into a folder, and return its path. An OSError names the file."""
    document = document_of(results)
    head = {name: value for name, value in document.items() if name not in _ROWS}
    parts = [json.dumps(head, indent=1, ensure_ascii=False, allow_nan=False).removesuffix("\n}")]
    for name in _ROWS:
        lines = [json.dumps(row, ensure_ascii=False, allow_nan=False, separators=(",", ":")) for row in document[name]]
        parts.append(f' "{name}": [\n' + ",\n".join(lines) + "\n ]" if lines else f' "{name}": []')
    path = folder / RESULTS_FILE
    replace_text(path, ",\n".join(parts) + "\n}\n")
    return path


def read_results(path: Path) -> EvalResults:
    """A results.json, or that of a folder. Raises UserError where it is damaged or of another version."""
    file = path / RESULTS_FILE if path.is_dir() else path
    values = read_json_object(file, remedy=_REMEDY)
    if values.get("format") not in (FORMAT, _REPEATING_FORMAT):
        raise UserError(file, "is no results.json of this version", _REMEDY)
    try:
        if values["format"] == _REPEATING_FORMAT:
            return typed(EvalResults, {**values, "format": FORMAT})
        head = {name: value for name, value in values.items() if name not in _ROWS}
        questions = _unpacked(typed(_Rows, {name: values.get(name) for name in _ROWS}))
        return replace(typed(EvalResults, {**head, "questions": []}), questions=questions)
    except ValueError as error:
        reason = str(error).splitlines()[0]
        raise UserError(file, f"is damaged: {reason}", _REMEDY) from None


def _packed(results: Sequence[QuestionResult]) -> _Rows:
    """Each question once, in the order in which it was first asked."""
    places: dict[_Question, int] = {}
    answers = []
    for result in results:
        question = _Question(suite=result.suite, id=result.id, task=result.task, turns=result.turns, right=result.right)
        place = places.setdefault(question, len(places))
        given = {field.name: getattr(result, field.name) for field in fields(AnswerResult)}
        answers.append(_Answer(question=place, condition=result.condition, **given))
    begins, questions = _with_begins(list(places))
    return _Rows(begins=begins, questions=questions, answers=tuple(answers))


def _with_begins(questions: Sequence[_Question]) -> tuple[tuple[str, ...], tuple[_Question, ...]]:
    """What the questions of a task have in common at their beginning, and the questions without it."""
    firsts: dict[tuple[str, str], list[str]] = {}
    for question in questions:
        if question.turns:
            firsts.setdefault((question.suite, question.task), []).append(question.turns[0])
    common = {key: _common_begin(texts) for key, texts in firsts.items()}
    begins = {key: text for key, text in common.items() if len(text) * (len(firsts[key]) - 1) >= _LEAST_SAVED}
    places = {key: place for place, key in enumerate(begins)}

    def shortened(question: _Question) -> _Question:
        key = (question.suite, question.task)
        if key not in places or not question.turns:
            return question
        first = question.turns[0][len(begins[key]) :]
        return replace(question, turns=(first, *question.turns[1:]), begin=places[key])

    return tuple(begins.values()), tuple(map(shortened, questions))


def _common_begin(texts: Sequence[str]) -> str:
    """What all texts begin with: what the first and the last in the order of the alphabet do."""
    first, last = min(texts), max(texts)
    places = (place for place, (one, other) in enumerate(zip(first, last, strict=False)) if one != other)
    return first[: next(places, len(first))]


def _unpacked(rows: _Rows) -> tuple[QuestionResult, ...]:
    """Raises ValueError for an answer to a question that is not there."""
    questions = [_whole(question, rows.begins) for question in rows.questions]
    found = []
    for answer in rows.answers:
        if not 0 <= answer.question < len(questions):
            raise ValueError(f"an answer to question {answer.question}, and there are {len(questions)} questions")
        question = questions[answer.question]
        given = {field.name: getattr(answer, field.name) for field in fields(AnswerResult)}
        about = {field.name: getattr(question, field.name) for field in fields(_Question) if field.name != "begin"}
        found.append(QuestionResult(**about, condition=answer.condition, **given))
    return tuple(found)


def _whole(question: _Question, begins: Sequence[str]) -> _Question:
    if question.begin is None:
        return question
    if not 0 <= question.begin < len(begins) or not question.turns:
        raise ValueError(f"question {question.id} begins with text {question.begin}, and there are {len(begins)} texts")
    first = begins[question.begin] + question.turns[0]
    return replace(question, turns=(first, *question.turns[1:]), begin=None)


def _without_defaults(kind: type, rows: Sequence[Any]) -> list[dict[str, Any]]:
    names, defaults = [field.name for field in fields(kind)], _defaults(kind)
    values = ({name: getattr(row, name) for name in names} for row in rows)
    return [
        {name: value for name, value in row.items() if name not in defaults or value != defaults[name]}
        for row in values
    ]


def _defaults(kind: type) -> Mapping[str, Any]:
    """The fields of a dataclass that have a default."""
    found: dict[str, Any] = {}
    for field in fields(kind):
        if field.default is not MISSING:
            found[field.name] = field.default
        elif field.default_factory is not MISSING:
            found[field.name] = field.default_factory()
    return found
