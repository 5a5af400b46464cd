"""Questions with checkable answers: how many an exported model answers rightly under a condition."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from data_pipeline.errors import UserError

_BATCH = 250


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question, its only right answer, and the task that it belongs to ("" for none)."""

    question: str
    answer: str
    task: str


class _Answers(Protocol):
    def answers(
        self, conversations: Sequence[Any], *, condition: str | None, max_new_tokens: int, temperature: float
    ) -> list[str]: ...


def load_questions(path: Path) -> list[Question]:
    """Read questions, a JSON object a line: `question`, `answer`, and if there are several `task`.

    Raises UserError for a file or a line that is not so.
    """
    try:
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            "validation.questions", f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}"
        ) from None
    questions = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            fields = {"question": row["question"], "answer": row["answer"], "task": row.get("task", "")}
        except (ValueError, AttributeError, KeyError, TypeError):
            fields = {}
        if not fields or not all(isinstance(value, str) for value in fields.values()) or not fields["question"]:
            raise UserError(
                "validation.questions",
                f"{path}:{number}: expected an object with the texts `question` and `answer` (and `task`), found "
                f"{line[:80]}",
            )
        questions.append(Question(**fields))
    if not questions:
        raise UserError("validation.questions", f"{path}: holds no question")
    return questions


def right_ratios(
    generator: _Answers,
    questions: Sequence[Question],
    condition: str | None,
    *,
    max_new_tokens: int,
    pattern: str | None = None,
) -> dict[str, float]:
    """Share of right answers for each task, and for `all`; greedy answers.

    pattern: a regular expression; of the model's answer and of the right one, what its last match (its first group,
    where it has one) holds is compared, and an answer without a match is wrong. None: the whole answers are compared.
    """
    asked, right = Counter[str](), Counter[str]()
    for start in range(0, len(questions), _BATCH):
        batch = questions[start : start + _BATCH]
        answers = generator.answers(
            [[{"role": "user", "content": question.question}] for question in batch],
            condition=condition,
            max_new_tokens=max_new_tokens,
            temperature=0.0,
        )
        for question, answer in zip(batch, answers, strict=True):
            expected = result_of(question.answer, pattern)
            is_right = expected is not None and result_of(answer, pattern) == expected
            for key in {question.task, ""}:
                asked[key] += 1
                right[key] += is_right
    names = sorted(task for task in asked if task)
    return {task: right[task] / asked[task] for task in names} | {"all": right[""] / asked[""]}


def result_of(answer: str, pattern: str | None) -> str | None:
    """What of an answer is compared."""
    if pattern is None:
        return answer.strip()
    matches = list(re.finditer(pattern, answer))
    return (matches[-1].group(1) if matches[-1].re.groups else matches[-1].group()) if matches else None
