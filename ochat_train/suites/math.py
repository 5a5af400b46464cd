"""MATH: competition problems whose answer is a formula in `\\boxed{...}`.

The formula that an answer boxes last is compared with that of the solution, as text in one spelling (`spelled`);
numbers and fractions are compared as numbers. What is equal only after a calculation (`2x + 2x` and `4x`) is not the
same.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction
from pathlib import PurePosixPath

from data_pipeline import nesting
from data_pipeline.errors import UserError
from ochat_train.suites.data import DataFile, Row, SuiteData, text_of
from ochat_train.suites.suite import Question, Scored, Suite, SuiteKind, SuiteOptions, each

NAME = "math"
_REMEDY = f"name a JSONL file or the folder of its problems: --data {NAME}=PATH"
_BOXES = ("\\boxed", "\\fbox")
_PHRASE = re.compile(r"answer is:?\s*", re.IGNORECASE)
_LEFT_OUT = re.compile(
    r"\\left|\\right|\\[!,;: ]|\\(?:text|mbox|mathrm|textbf)\s*\{\s*(?:square|cubic)?\s*(?:units?|degrees?|dollars?|"
    r"cents?|inches|feet|meters|cm|miles|hours?|minutes|seconds)(?:\^\d)?\s*\}(?:\^\d)?|\^\s*\{?\s*\\circ\s*\}?|"
    r"\\?[$%]|(?<=\d),(?=\d{3}(?!\d))"
)
_SHORT_FRACTION = re.compile(r"\\frac(?:\{(\w)\}|(\w))(?:\{(\w)\}|(\w))")
_NUMBER = re.compile(r"-?(?:\d+\.?\d*|\.\d+)")
_FRACTION = re.compile(r"(-?)\\frac\{(-?\d+)\}\{(-?\d+)\}|(-?\d+)/(-?\d+)")
_MOST_DIGITS = 200


def _make(options: SuiteOptions) -> Suite:
    data = options.data
    rows, files = _rows_of(data) if data is not None else ([], [])
    if data is None or not rows:
        raise UserError("--data" if data is None else data.path, f"the suite {NAME} needs its problems", _REMEDY)
    return Suite(
        name=NAME,
        title="MATH",
        version=1,
        metric="accuracy",
        rule="the last boxed formula, otherwise what follows the last `answer is`, has the spelling or the value of "
        "the solution's",
        max_new_tokens=1024,
        questions=tuple(_question(row, id) for id, row in rows),
        score=each(_scored),
        files=tuple(files),
    )


def boxed(text: str) -> str | None:
    """What is inside the last `\\boxed{...}` or `\\fbox{...}`, brackets in it included; None where there is none."""
    start = max(text.rfind(box) for box in _BOXES)
    opening = text.find("{", start)
    if start < 0 or opening < 0:
        return None
    level = 0
    for place in range(opening, len(text)):
        level += (text[place] == "{") - (text[place] == "}")
        if level == 0:
            return text[opening + 1 : place].strip()
    return None


def spelled(formula: str) -> str:
    """A formula in one spelling: without spaces, units, degrees, dollar and percent signs, thousands commas, `\\left`,
    `\\text{}` around words, `x=` before one value; `\\dfrac` and `\\frac12` as `\\frac{1}{2}`; one minus.
    """
    text = formula.strip().rstrip(".").replace("−", "-").replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac")
    text = _LEFT_OUT.sub("", text)
    text = re.sub(r"\\(?:text|mbox|mathrm|textbf|mathbf)\s*\{([^{}]*)\}", r"\1", text)
    text = re.sub(r"\s+", "", text)
    text = _SHORT_FRACTION.sub(lambda m: f"\\frac{{{m[1] or m[2]}}}{{{m[3] or m[4]}}}", text)
    text = re.sub(r"\\sqrt(\w)", r"\\sqrt{\1}", text)
    return re.sub(r"^[A-Za-z]=(?=[^=]+$)", "", text)


def value_of(formula: str) -> Fraction | None:
    """The number that a spelled formula is: whole, with decimals or a fraction. None for others."""
    if len(formula) > _MOST_DIGITS:
        return None
    if _NUMBER.fullmatch(formula):
        return Fraction(formula.rstrip(".") if formula.endswith(".") else formula)
    match = _FRACTION.fullmatch(formula)
    if match is None:
        return None
    over, under = (int(match[2]), int(match[3])) if match[2] else (int(match[4]), int(match[5]))
    if under == 0:
        return None
    return Fraction(over, under) * (-1 if match[1] else 1)


def is_same(one: str, other: str) -> bool:
    """Whether two formulas have the same spelling or the same value."""
    first, second = spelled(one), spelled(other)
    if first == second:
        return bool(first)
    values = value_of(first), value_of(second)
    return values[0] is not None and values[0] == values[1]


def find_answer(answer: str) -> str | None:
    """The last boxed formula, otherwise the line after the last `answer is`; None or "" where there is neither."""
    found = boxed(answer)
    if found is None and (phrases := list(_PHRASE.finditer(answer))):
        found = answer[phrases[-1].end() :].strip().split("\n")[0].strip()
    return found


def _scored(question: Question, answer: str) -> Scored:
    found = find_answer(answer)
    if not found:
        return Scored(value=0.0, is_answered=False)
    return Scored(value=float(is_same(found, question.right[0])), is_answered=True, found=found)


def _question(row: Row, id: str) -> Question:
    solution = text_of(row, "solution")
    right = boxed(solution)
    if right is None and isinstance(answer := row.values.get("answer"), str):
        right = answer
    if not right:
        raise UserError(row.place, "expected a boxed answer in `solution`")
    kind = row.values.get("subject", row.values.get("type", ""))
    return Question(
        id=id,
        task=kind if isinstance(kind, str) else "",
        turns=(text_of(row, "problem"),),
        right=(right,),
        worked=solution,
    )


def _rows_of(data: SuiteData) -> tuple[list[tuple[str, Row]], list[DataFile]]:
    """Problems with their names: lines of a JSONL file, or a JSON file each, as its authors gave it."""
    files: list[DataFile] = []
    rows: list[tuple[str, Row]] = []
    for name in _files_in(data):
        if name.endswith(".jsonl"):
            found, record = data.rows(name)
            rows += [(f"{PurePosixPath(name).stem}/{row.number}", row) for row in found]
        else:
            row, record = _document(data, name)
            rows.append(("/".join(PurePosixPath(name).with_suffix("").parts[-2:]), row))
        files.append(record)
    return rows, files


def _document(data: SuiteData, name: str) -> tuple[Row, DataFile]:
    text, record = data.text(name)
    place = f"{data.path}: {name}"
    try:
        values = nesting.loads(text)
    except ValueError as error:
        raise UserError(place, f"is not JSON: {error}", "fetch the data again") from None
    if not isinstance(values, dict):
        raise UserError(place, "expected a JSON object")
    return Row(place=place, number=1, values=values), record


def _files_in(data: SuiteData) -> list[str]:
    """A JSONL file, or the test problems of a folder called MATH."""
    if data.is_file:
        return list(data.names)
    return list(_of_folders(data))


def _of_folders(data: SuiteData) -> Iterator[str]:
    for name in data.names:
        folders, file = [part.lower() for part in PurePosixPath(name).parts[:-1]], PurePosixPath(name).name.lower()
        if file in ("math.jsonl", "math_500.jsonl", "math500.jsonl") or (
            NAME in folders and "train" not in folders and file != "train.jsonl" and file.endswith((".json", ".jsonl"))
        ):
            yield name


SUITE = SuiteKind(
    name=NAME,
    summary="MATH, with its problems",
    make=_make,
    is_in=lambda data: not data.is_file and any(_of_folders(data)),
)
