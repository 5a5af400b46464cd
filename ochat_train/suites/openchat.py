"""Five benchmarks of the openchat_3.5 card, as OpenChat asked them: one message, and its rules for the answer.

The data is that of OpenChat's evaluation: a folder a benchmark, a JSONL file a task, with `question`, `label` and
`options` on each line. A question already holds its examples, where the benchmark has some.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from data_pipeline.errors import UserError
from data_pipeline.text_rules import shown
from ochat_train.suites.data import DataFile, Row, text_of
from ochat_train.suites.rules import RULES, RuleText
from ochat_train.suites.stated import comparable
from ochat_train.suites.suite import Question, Scored, Suite, SuiteKind, SuiteOptions, each

STRICT = "strict"
_STRICT_RULES = (RULES["stated"], RULES["stated text"])  # for questions with options, and without


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """One of the five. folder: of its files, in the layout of OpenChat. choice: name of the rule for questions with
    options, text: for those without, None where all have options.
    """

    name: str
    title: str
    folder: str
    choice: str
    text: str | None = None
    max_new_tokens: int = 512


BENCHMARKS = (
    Benchmark(name="agieval", title="AGIEval", folder="agieval", choice="first letter A-F"),
    Benchmark(name="bbh-mc", title="BBH, multiple choice", folder="bbh_mc_orca", choice="first option letter"),
    Benchmark(name="bbh-cot", title="BBH, chain of thought", folder="bbh", choice="BBH choice", text="BBH text"),
    Benchmark(name="truthfulqa", title="TruthfulQA", folder="truthfulqa_orca", choice="first option letter"),
    Benchmark(name="mmlu", title="MMLU", folder="mmlu", choice="MMLU"),
)


def _kind(benchmark: Benchmark) -> SuiteKind:
    return SuiteKind(
        name=benchmark.name,
        summary=f"{benchmark.title}, as OpenChat asked it",
        make=lambda options: _make(benchmark, options),
        is_in=lambda data: bool(data.in_folder(benchmark.folder)),
    )


def _make(benchmark: Benchmark, options: SuiteOptions) -> Suite:
    data = options.data
    names = data.in_folder(benchmark.folder) if data is not None else []
    if data is None or not names:
        where = "--data" if data is None else data.path
        raise UserError(
            where,
            f"the suite {benchmark.name} needs a folder {benchmark.folder} with .jsonl files, and there is none",
            "name the folder or tar archive of OpenChat's evaluation data: --data PATH",
        )
    questions: list[Question] = []
    files: list[DataFile] = []
    for name in names:
        rows, record = data.rows(name)
        files.append(record)
        task = PurePosixPath(name).name.removesuffix(".jsonl").removesuffix(".zero-shot")
        questions += [_question(row, task, benchmark) for row in rows]
    rules = [RULES[benchmark.choice].text] + ([RULES[benchmark.text].text] if benchmark.text else [])
    strict = [rule.text for rule in _STRICT_RULES[: len(rules)]]
    return Suite(
        name=benchmark.name,
        title=benchmark.title,
        version=2,
        metric="accuracy",
        rule=_joined(rules),
        other_rules={STRICT: _joined(strict)},
        max_new_tokens=benchmark.max_new_tokens,
        questions=tuple(questions),
        score=each(lambda question, answer: _scored(benchmark, question, answer)),
        files=tuple(files),
    )


def _joined(texts: Sequence[str]) -> str:
    return texts[0] if len(texts) == 1 else f"with options: {texts[0]}; without: {texts[1]}"


def _question(row: Row, task: str, benchmark: Benchmark) -> Question:
    label, options = row.values.get("label"), row.values.get("options")
    right = (label,) if isinstance(label, str) else label
    if not _is_texts(right) or not right:
        raise UserError(row.place, f"expected a right answer or a list of them in `label`, found {shown(label)}")
    if options is not None and not _is_texts(options):
        raise UserError(row.place, f"expected a list of letters in `options`, found {shown(options)}")
    if not options and benchmark.text is None:
        raise UserError(row.place, f"has no options, and {benchmark.name} is multiple choice")
    return Question(
        id=f"{task}/{row.number}",
        task=task,
        turns=(text_of(row, "question"),),
        right=tuple(right),
        options=tuple(options or ()),
    )


def _is_texts(value: object) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(item, str) and item for item in value)


def _scored(benchmark: Benchmark, question: Question, answer: str) -> Scored:
    """By the card's rule, and by our own, which never counts a missing answer as right."""
    letters = [option.strip("()") for option in question.options]
    rule = _rule(benchmark, question)
    found = rule.find(answer, letters)
    if question.options:
        strict = _STRICT_RULES[0].find(answer, letters).text
        is_strictly_right = strict in {right.strip("()") for right in question.right}
    else:
        strict = _STRICT_RULES[1].find(answer, letters).text
        is_strictly_right = strict in set(map(comparable, question.right))
    return Scored(
        value=float(found.text in question.right),
        is_answered=found.is_answer,
        found=found.text if found.is_answer else None,
        others={STRICT: float(is_strictly_right)},
        details={"found by strict": strict},
    )


def _rule(benchmark: Benchmark, question: Question) -> RuleText:
    if question.options or benchmark.text is None:
        return RULES[benchmark.choice]
    return RULES[benchmark.text]


SUITES = tuple(map(_kind, BENCHMARKS))
