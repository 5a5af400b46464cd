"""Questions with one right answer, and how many of them a model answers rightly under a condition."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from data_pipeline.errors import UserError
from ochat_train.suites.held_out import HeldOutQuestion, parse_questions, result_of

_BATCH = 250

RightRatios = Mapping[str, float]  # task -> share of right answers; ALL_TASKS: of all questions
ALL_TASKS = "all"


class Answerer(Protocol):
    """What answers conversations: `inference.generate.Generator`, or a stand-in."""

    def answers(
        self, conversations: Sequence[Any], *, condition: str | None, max_new_tokens: int, temperature: float
    ) -> list[str]:
        """One answer for each conversation."""
        ...


def load_questions(path: Path) -> list[HeldOutQuestion]:
    """Read questions, a JSON object on each line: `question`, `answer`, and if there are several `task`.

    Raises UserError for a file or a line that is not like that.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError("validation.questions", f"{path}: cannot be read: {reason}") from None
    return parse_questions(text, place="validation.questions", source=str(path))


def right_ratios_by_condition(
    answerer: Answerer,
    questions: Sequence[HeldOutQuestion],
    conditions: Sequence[str],
    *,
    max_new_tokens: int,
    pattern: str | None = None,
) -> dict[str, RightRatios]:
    """Condition -> share of right answers under it, none without questions; otherwise as `right_ratios`."""
    if not questions:
        return {}
    return {
        condition: right_ratios(answerer, questions, condition, max_new_tokens=max_new_tokens, pattern=pattern)
        for condition in dict.fromkeys(conditions)
    }


def right_ratios(
    answerer: Answerer,
    questions: Sequence[HeldOutQuestion],
    condition: str | None,
    *,
    max_new_tokens: int,
    pattern: str | None = None,
) -> RightRatios:
    """Share of right answers for each task, and for ALL_TASKS; answers are greedy.

    condition: None for the model's own. pattern: a regular expression. The last match in the model's answer (its first
    group, if it has one) is compared with the last match in the right answer, and an answer without a match is wrong.
    None: whole answers are compared.
    """
    asked, right = Counter[str](), Counter[str]()
    for start in range(0, len(questions), _BATCH):
        batch = questions[start : start + _BATCH]
        answers = answerer.answers(
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
    return {task: right[task] / asked[task] for task in names} | {ALL_TASKS: right[""] / asked[""]}
