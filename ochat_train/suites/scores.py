"""From the results of questions to scores with their intervals."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations
from pathlib import Path

from ochat_train.suites.contamination import contamination
from ochat_train.suites.intervals import Estimate, mean_estimate, paired_estimate
from ochat_train.suites.results import PairedDifference, QuestionResult, SeenScores, SuiteScore
from ochat_train.suites.suite import Suite


def suite_scores(questions: Sequence[QuestionResult], *, seed: int, highest: float = 1.0) -> list[SuiteScore]:
    """Scores of one suite: for each condition, of all questions and then of each task, if there are several."""
    scores = []
    for condition in _conditions(questions):
        asked = [question for question in questions if question.condition == condition]
        scores.append(_suite_score(asked, task=None, seed=seed, highest=highest))
        tasks = sorted({question.task for question in asked})
        if len(tasks) > 1:
            for task in tasks:
                of_task = [question for question in asked if question.task == task]
                scores.append(_suite_score(of_task, task=task, seed=seed, highest=highest))
    return scores


def paired_differences(
    questions: Sequence[QuestionResult], *, seed: int, highest: float = 1.0
) -> list[PairedDifference]:
    """Each pair of conditions of one suite."""
    by_condition = {
        condition: [question for question in questions if question.condition == condition]
        for condition in _conditions(questions)
    }
    return [
        paired_difference(by_condition[first], by_condition[second], seed=seed, highest=highest)
        for first, second in combinations(by_condition, 2)
    ]


def paired_difference(
    first: Sequence[QuestionResult], second: Sequence[QuestionResult], *, seed: int, highest: float
) -> PairedDifference:
    """Two lists of results of one suite, each of one condition; questions that were scored in both count."""
    values = {question.id: question.value for question in second}
    pairs = [(one.value, other) for one in first if one.value is not None and (other := values.get(one.id)) is not None]
    ones, others = [one for one, _ in pairs], [other for _, other in pairs]
    return PairedDifference(
        suite=first[0].suite,
        first=first[0].condition,
        second=second[0].condition,
        num_questions=len(pairs),
        num_first_better=sum(one > other for one, other in pairs),
        num_second_better=sum(other > one for one, other in pairs),
        difference=paired_estimate(ones, others, seed=seed, highest=highest) if pairs else None,
    )


def busy_seconds(spans: Iterable[tuple[float, float]]) -> float:
    """The length of the union of spans of time: how long at least one of them lasted."""
    total, until = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total


def _suite_score(asked: Sequence[QuestionResult], *, task: str | None, seed: int, highest: float) -> SuiteScore:
    scored = [question for question in asked if question.status == "scored"]
    counts = [question.num_tokens for question in scored if question.num_tokens is not None]
    spans = [(q.started, q.ended) for q in scored if q.started is not None and q.ended is not None]
    seconds = busy_seconds(spans) if spans else None
    known = len(counts) == len(scored) and counts
    return SuiteScore(
        suite=asked[0].suite,
        task=task,
        condition=asked[0].condition,
        num_questions=len(asked),
        num_scored=len(scored),
        num_failed=sum(question.status == "failed" for question in asked),
        num_too_long=sum(question.status == "too_long" for question in asked),
        score=_estimate([question.value for question in scored], seed=seed, highest=highest),
        others={
            rule: estimate
            for rule in sorted({rule for question in scored for rule in question.others})
            if (estimate := _estimate([q.others.get(rule) for q in scored], seed=seed, highest=highest)) is not None
        },
        answered=_share(question.is_answered for question in scored),
        empty=_share(question.is_empty for question in scored),
        cut=_share(question.finish == "length" for question in scored),
        num_had_less_room=sum(question.had_less_room for question in scored),
        mean_tokens=sum(counts) / len(counts) if known else None,
        seconds=None if seconds is None else round(seconds, 3),
        tokens_per_second=round(sum(counts) / seconds, 3) if known and seconds else None,
    )


def _conditions(questions: Iterable[QuestionResult]) -> list[str | None]:
    return list(dict.fromkeys(question.condition for question in questions))


def _estimate(values: Sequence[float | None], *, seed: int, highest: float) -> Estimate | None:
    known = [value for value in values if value is not None]
    return mean_estimate(known, seed=seed, highest=highest) if known else None


def _share(marks: Iterable[bool]) -> float | None:
    values = list(marks)
    return sum(values) / len(values) if values else None


def seen_scores(
    suites: Sequence[Suite], questions: Sequence[QuestionResult], prepared_dir: Path, *, seed: int
) -> list[SeenScores]:
    """How much of each suite is in a prepared dataset, and what that does to the scores under each condition.

    Raises UserError for a folder without a dataset.
    """
    texts = {suite.name: ["\n".join(question.turns) for question in suite.questions] for suite in suites}
    results = []
    for name, found in contamination(texts, prepared_dir).items():
        suite = next(suite for suite in suites if suite.name == name)
        seen = {suite.questions[number].id: place for number, place in found.seen.items()}
        asked = [question for question in questions if question.suite == name]
        for condition in _conditions(asked):
            under = [question for question in asked if question.condition == condition]
            parts = [[q.value for q in under if (q.id in seen) is wanted] for wanted in (True, False)]
            scores = [_estimate(values, seed=seed, highest=suite.highest) for values in parts]
            results.append(
                SeenScores(
                    suite=name,
                    condition=condition,
                    num_questions=found.num_questions,
                    num_seen=len(seen),
                    num_unchecked=len(found.unchecked),
                    score_seen=scores[0],
                    score_unseen=scores[1],
                    seen=seen,
                    fingerprint=found.fingerprint,
                    num_conversations=found.num_conversations,
                )
            )
    return results
