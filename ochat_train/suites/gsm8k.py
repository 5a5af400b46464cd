"""GSM8K: grade-school problems whose answer is a number. The last number of an answer is compared, as a number.

Two layouts of data are read: that of its authors (`question`, and `answer` with the number after `####`), and
conversations in OpenChat's format with `meta.is_correct`, where a conversation marked right gives the right answer. A
problem without one is left out, and counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import PurePosixPath
from typing import Any

from data_pipeline.errors import UserError
from data_pipeline.text_rules import shown
from ochat_train.suites.data import DataFile, Row, SuiteData, text_of
from ochat_train.suites.numbers import last_number
from ochat_train.suites.rules import RULES
from ochat_train.suites.suite import Question, Scored, Suite, SuiteKind, SuiteOptions, each

NAME = "gsm8k"
CARD_RULE = "card"
_NO_RIGHT_ANSWER = "problems without a right answer in the file"
_REMEDY = f"name the file: --data {NAME}=FILE.jsonl"


@dataclass(frozen=True, kw_only=True)
class Problem:
    """text: what is asked. worked: a right answer written out. right: its number."""

    text: str
    worked: str
    right: Fraction


def _make(options: SuiteOptions) -> Suite:
    data = options.data
    if data is None or (name := _file_in(data)) is None:
        where = "--data" if data is None else data.path
        raise UserError(where, f"the suite {NAME} needs a file of problems", _REMEDY)
    rows, record = data.rows(name)
    if not rows:
        raise UserError(data.path, f"{name}: holds no problems", _REMEDY)
    return make_suite(rows, record)


def make_suite(rows: Sequence[Row], record: DataFile) -> Suite:
    """The suite of rows in either layout. Raises UserError for a row in none."""
    problems, left_out = _of_conversations(rows) if "items" in rows[0].values else (_of_authors(rows), 0)
    questions = tuple(
        Question(
            id=f"{NAME}/{number}",
            task="",
            turns=(problem.text,),
            right=(str(problem.right),),
            worked=problem.worked,
        )
        for number, problem in problems.items()
    )
    return Suite(
        name=NAME,
        title="GSM8K",
        version=1,
        metric="accuracy",
        rule="the number after the last `####`, otherwise the last number, equals the right one; 1,234.50 = 1234.5",
        other_rules={CARD_RULE: RULES["last digits"].text},
        max_new_tokens=512,
        questions=questions,
        score=each(_scored),
        files=(record,),
        left_out={_NO_RIGHT_ANSWER: left_out} if left_out else {},
    )


def _scored(question: Question, answer: str) -> Scored:
    number = last_number(answer)
    found = None if number is None else str(number)
    digits = RULES["last digits"].find(answer, ()).text
    return Scored(
        value=float(found in question.right),
        is_answered=number is not None,
        found=found,
        others={CARD_RULE: float(digits in question.right)},
    )


def _of_authors(rows: Sequence[Row]) -> dict[int, Problem]:
    """Problems by the number of their line."""
    problems = {}
    for row in rows:
        answer = text_of(row, "answer")
        right = last_number(answer) if "####" in answer else None
        if right is None:
            raise UserError(row.place, f"expected a number after `####` in `answer`, found {shown(answer)}")
        problems[row.number] = Problem(text=text_of(row, "question"), worked=answer, right=right)
    return problems


def _of_conversations(rows: Sequence[Row]) -> tuple[dict[int, Problem], int]:
    """Problems by the number of their first line, and how many have no right answer."""
    first_line: dict[str, int] = {}
    problems: dict[int, Problem] = {}
    for row in rows:
        text, answer, is_correct = _conversation(row)
        number = first_line.setdefault(text, row.number)
        right = last_number(answer) if is_correct else None
        if right is None:
            continue
        if number in problems and problems[number].right != right:
            raise UserError(
                row.place, f"is marked right with {right}, and an earlier one with {problems[number].right}"
            )
        problems.setdefault(number, Problem(text=text, worked=answer, right=right))
    return dict(sorted(problems.items())), len(first_line) - len(problems)


def _conversation(row: Row) -> tuple[str, str, bool]:
    """What is asked, the answer, and whether it is right."""
    items: Any = row.values.get("items")
    try:
        text, answer = items[0]["content"], items[1]["content"]
        is_correct = row.values["meta"]["is_correct"]
    except (LookupError, TypeError):
        text = answer = is_correct = None
    if not isinstance(text, str) or not isinstance(answer, str) or not isinstance(is_correct, bool):
        raise UserError(row.place, "expected a question and an answer in `items`, and `meta.is_correct`")
    return text, answer, is_correct


def _file_in(data: SuiteData) -> str | None:
    """The only file, or one that is called after the benchmark."""
    if data.is_file:
        return data.names[0]
    folder = data.in_folder(NAME)
    tests = [name for name in folder if PurePosixPath(name).name in ("test.jsonl", "main_test.jsonl")]
    named = [name for name in data.names if NAME in PurePosixPath(name).name and name.endswith(".jsonl")]
    found = tests or folder or named
    return found[0] if len(found) == 1 else None


SUITE = SuiteKind(
    name=NAME,
    summary="GSM8K, with a file of its problems",
    make=_make,
    is_in=lambda data: not data.is_file and _file_in(data) is not None,
)
