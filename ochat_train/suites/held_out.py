"""Your own questions, each with one right answer: those of `validation.questions` and of the quickstart."""

from __future__ import annotations

import re
from dataclasses import dataclass

from data_pipeline import nesting
from data_pipeline.errors import UserError
from ochat_train.suites.data import SuiteData
from ochat_train.suites.suite import Question, Scored, Suite, SuiteKind, SuiteOptions, each

NAME = "held-out"
FILE = "held_out.jsonl"


@dataclass(frozen=True, kw_only=True)
class HeldOutQuestion:
    """A question, its only right answer, and the task that it belongs to ("" for none)."""

    question: str
    answer: str
    task: str


def parse_questions(text: str, *, place: str, source: str) -> list[HeldOutQuestion]:
    """Questions, a JSON object on each line: `question`, `answer`, and if there are several `task`.

    place: what an error names, such as a key of the recipe. source: the file. Raises UserError for a line that is not
    like that, and where there is no question at all.
    """
    if not text.strip():
        raise UserError(place, f"{source}: holds no question", "write one on each line: question, answer and task")
    lines = text.removesuffix("\n").split("\n")
    return [_question(line, place=place, at=f"{source}:{number}") for number, line in enumerate(lines, start=1)]


def _question(line: str, *, place: str, at: str) -> HeldOutQuestion:
    try:
        row = nesting.loads(line)
        fields = {"question": row["question"], "answer": row["answer"], "task": row.get("task", "")}
    except (ValueError, AttributeError, KeyError, TypeError):
        fields = {}
    if not fields or not all(isinstance(value, str) for value in fields.values()) or not fields["question"]:
        raise UserError(
            place,
            f"{at}: expected an object with the texts `question` and `answer` (and `task`), found {line[:80]}",
        )
    return HeldOutQuestion(**fields)


def result_of(answer: str, pattern: str | None) -> str | None:
    """What of an answer is compared: its last match of a regular expression (the first group of it, if it has one),
    None where nothing matches; without a pattern the whole answer.
    """
    if pattern is None:
        return answer.strip()
    matches = list(re.finditer(pattern, answer))
    return (matches[-1].group(1) if matches[-1].re.groups else matches[-1].group()) if matches else None


def _make(options: SuiteOptions) -> Suite:
    data = options.data
    if data is None or (name := _file_in(data)) is None:
        where = "--data" if data is None else data.path
        raise UserError(where, f"the suite {NAME} needs a file of questions", f"name it: --data {NAME}=FILE.jsonl")
    text, record = data.text(name)
    rows = parse_questions(text, place="--data", source=str(data.path if data.is_file else data.path / name))
    questions = tuple(
        Question(
            id=f"{row.task or 'question'}/{number}",
            task=row.task,
            turns=(row.question,),
            right=(row.answer,),
            worked=row.answer,
        )
        for number, row in enumerate(rows, start=1)
    )
    pattern = options.answer_pattern
    compared = "the whole answer" if pattern is None else f"the last match of `{pattern}` in the answer"
    return Suite(
        name=NAME,
        title="Held-out questions",
        version=1,
        metric="accuracy",
        rule=f"{compared} equals that of the right answer",
        max_new_tokens=64,
        questions=questions,
        score=each(lambda question, answer: _scored(question, answer, pattern)),
        files=(record,),
    )


def _scored(question: Question, answer: str, pattern: str | None) -> Scored:
    expected, found = result_of(question.right[0], pattern), result_of(answer, pattern)
    return Scored(value=float(expected is not None and found == expected), is_answered=bool(found), found=found)


def _file_in(data: SuiteData) -> str | None:
    """The file with questions: the only one, or held_out.jsonl of a folder."""
    if data.is_file:
        return data.names[0]
    return next((name for name in data.names if name.rsplit("/", 1)[-1] == FILE), None)


SUITE = SuiteKind(
    name=NAME,
    summary="your own questions: `question`, `answer` and `task` on each line",
    make=_make,
    is_in=lambda data: not data.is_file and _file_in(data) is not None,
)
