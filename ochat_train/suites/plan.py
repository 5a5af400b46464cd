"""The plan of an evaluation: which questions are asked under which conditions, and the results of its answers."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from data_pipeline.errors import UserError
from ochat_train.suites.ask import TOO_LONG, Failures, Request, Respondent, TurnSettings
from ochat_train.suites.results import (
    EvalResults,
    EvalSettings,
    ModelFacts,
    PairedDifference,
    QuestionResult,
    SuiteFacts,
    SuiteScore,
)
from ochat_train.suites.scores import paired_differences, suite_scores
from ochat_train.suites.store import AnswerStore, key_of
from ochat_train.suites.suite import SCORED_BY, Answer, Message, Question, Scored, Suite, Unscored

Condition = str | None
_KEY_LAYOUT = 1  # of the parts of a key
_PROMPTS_BETWEEN = 16  # a few milliseconds


@dataclass(frozen=True, kw_only=True)
class Asker:
    """Who is asked, as results name it. versions: of this program's libraries; engine_versions: of the engine's."""

    respondent: Respondent
    model: ModelFacts
    engine: str
    engine_versions: Mapping[str, str]
    versions: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class PlannedQuestion:
    """A question under a condition, and what is asked for it."""

    suite: Suite
    question: Question
    condition: Condition
    prompt_sha256: str
    request: Request


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that an evaluation asks, in the order of its results."""

    suites: tuple[Suite, ...]
    conditions: tuple[Condition, ...]
    settings: EvalSettings
    asker: Asker
    questions: tuple[PlannedQuestion, ...]

    @property
    def requests(self) -> list[Request]:
        """What is asked."""
        return [planned.request for planned in self.questions]

    def num_answered(self, store: AnswerStore) -> int:
        """How many of them are in the store."""
        return sum(store.get(request.key) is not None for request in self.requests)


async def plan_evaluation(
    suites: Sequence[Suite],
    conditions: Sequence[Condition],
    asker: Asker,
    settings: EvalSettings,
    *,
    starting: asyncio.Future[Any] | None = None,
) -> Plan:
    """What to ask. Other tasks run in between. starting: one of them, whose failure ends the planning.

    Raises UserError for examples (`few_shot`) of a suite that has none, and prompts that cannot be.
    """
    questions = []
    for number, question in enumerate(_planned_questions(suites, conditions, asker, settings)):
        questions.append(question)
        if number % _PROMPTS_BETWEEN == 0:
            await asyncio.sleep(0)
            if starting is not None and starting.done():
                starting.result()
    return Plan(
        suites=tuple(suites), conditions=tuple(conditions), settings=settings, asker=asker, questions=tuple(questions)
    )


def results_of(plan: Plan, store: AnswerStore, failures: Failures) -> EvalResults:
    """Score what the store holds. Everything but what failed is the same however often the asking was cut off."""
    questions: list[QuestionResult] = []
    scores: list[SuiteScore] = []
    paired: list[PairedDifference] = []
    for suite in plan.suites:
        planned = [item for item in plan.questions if item.suite is suite]
        found = _question_results(suite, planned, store, failures)
        questions += found
        scores += suite_scores(found, seed=plan.settings.seed, highest=suite.highest)
        paired += paired_differences(found, seed=plan.settings.seed, highest=suite.highest)
    failed_tries: dict[str, int] = {}
    for question in questions:
        for reason, count in question.failed_tries.items():
            failed_tries[reason] = failed_tries.get(reason, 0) + count
    return EvalResults(
        created=_created(questions),
        model=plan.asker.model,
        engine=plan.asker.engine,
        engine_versions=dict(plan.asker.engine_versions),
        versions=dict(plan.asker.versions),
        settings=plan.settings,
        conditions=plan.conditions,
        suites=tuple(_suite_facts(suite, plan, questions) for suite in plan.suites),
        scores=tuple(scores),
        paired=tuple(paired),
        failed_tries=dict(sorted(failed_tries.items())),
        questions=tuple(questions),
    )


def sampled(suite: Suite, *, limit: int | None, seed: int) -> list[Question]:
    """At most `limit` questions, in the order of the suite: a random sample, of each task in proportion to its size.

    The same seed, limit and questions give the same sample, whatever else is asked.
    """
    if limit is None or limit >= len(suite.questions):
        return list(suite.questions)
    by_task: dict[str, list[int]] = {}
    for index, question in enumerate(suite.questions):
        by_task.setdefault(question.task, []).append(index)
    shares = _shares({task: len(indices) for task, indices in by_task.items()}, limit)
    chosen: list[int] = []
    for task, indices in by_task.items():
        chosen += random.Random(f"{seed}/{suite.name}/{task}").sample(indices, shares[task])
    return [suite.questions[index] for index in sorted(chosen)]


def _planned_questions(
    suites: Sequence[Suite], conditions: Sequence[Condition], asker: Asker, settings: EvalSettings
) -> Iterator[PlannedQuestion]:
    """The questions of a plan, in its order. Making their prompts takes the time."""
    for suite in suites:
        for condition in conditions:
            for question, before in _with_examples(suite, settings):
                yield _planned(suite, question, condition, before=before, asker=asker, settings=settings)


def _shares(sizes: Mapping[str, int], limit: int) -> dict[str, int]:
    """How many of each task: the whole part of its share, and one more for the largest rests (Hamilton's method)."""
    total = sum(sizes.values())
    shares = {task: size * limit // total for task, size in sizes.items()}
    by_rest = sorted(sizes, key=lambda task: (-(sizes[task] * limit % total), task))
    for task in by_rest[: limit - sum(shares.values())]:
        shares[task] += 1
    return shares


def _with_examples(suite: Suite, settings: EvalSettings) -> list[tuple[Question, tuple[Message, ...]]]:
    """The questions to ask, each with the examples before it: worked answers of other questions of its task."""
    asked = sampled(suite, limit=settings.limit, seed=settings.seed)
    if not settings.few_shot:
        return [(question, ()) for question in asked]
    pools: dict[str, list[Question]] = {}
    for question in suite.questions:
        if question.worked:
            pools.setdefault(question.task, []).append(question)
    for task, pool in pools.items():
        random.Random(f"{settings.seed}/{suite.name}/{task}/examples").shuffle(pool)
    return [(question, _examples(suite, question, pools, settings.few_shot)) for question in asked]


def _examples(
    suite: Suite, question: Question, pools: Mapping[str, Sequence[Question]], count: int
) -> tuple[Message, ...]:
    others = [other for other in pools.get(question.task, ()) if other.turns != question.turns][:count]
    if len(others) < count:
        of_task = f" of the task {question.task}" if question.task else ""
        problem = f"{count} examples are asked for, and {suite.name} has {len(others)} worked answers{of_task}"
        raise UserError("--few-shot", problem, "ask for fewer, or leave it out")
    return tuple(
        message
        for other in others
        for message in ({"role": "user", "content": other.turns[0]}, {"role": "assistant", "content": other.worked})
    )


def _planned(
    suite: Suite,
    question: Question,
    condition: Condition,
    *,
    before: tuple[Message, ...],
    asker: Asker,
    settings: EvalSettings,
) -> PlannedQuestion:
    first = [*before, {"role": "user", "content": question.turns[0]}]
    prompt = asker.respondent.prompt(first, condition)
    prompt_sha256 = key_of(prompt.fingerprint)
    temperature = settings.temperature if question.temperature is None else question.temperature
    turn = TurnSettings(
        max_new_tokens=settings.max_new_tokens or suite.max_new_tokens,
        temperature=temperature,
        top_p=settings.top_p if temperature else 1.0,
        seed=settings.seed if temperature else None,  # a greedy answer does not depend on it
    )
    about: dict[str, Any] = {"suite": suite.name, "id": question.id, "condition": condition}
    engine = [asker.engine, dict(asker.engine_versions)]
    # Without the version of the suite: an answer to the same prompt is the same, whatever rule scores it.
    key = key_of(about, _KEY_LAYOUT, prompt_sha256, question.turns, vars(turn), asker.model.identity, engine)
    request = Request(
        key=key, before=before, turns=question.turns, condition=condition, settings=turn, first=prompt, about=about
    )
    return PlannedQuestion(
        suite=suite, question=question, condition=condition, prompt_sha256=prompt_sha256, request=request
    )


def _question_results(
    suite: Suite, planned: Sequence[PlannedQuestion], store: AnswerStore, failures: Failures
) -> list[QuestionResult]:
    answers = [store.get(item.request.key) for item in planned]
    answered = [(item.question, answer) for item, answer in zip(planned, answers, strict=True) if answer is not None]
    scored = iter(suite.score(answered))
    results = []
    for item, answer in zip(planned, answers, strict=True):
        if answer is None:
            results.append(_without_answer(item, failures))
            continue
        results.append(_with_answer(item, answer, next(scored)))
    return results


def _without_answer(item: PlannedQuestion, failures: Failures) -> QuestionResult:
    failure = failures.get(item.request.key)
    reason = "not asked" if failure is None else failure.reason
    return QuestionResult(
        **_about(item),
        status="too_long" if reason == TOO_LONG else "failed",
        reason=reason,
        failed_tries={} if failure is None else failure.failed_tries,
    )


def _with_answer(item: PlannedQuestion, answer: Answer, scored: Scored | Unscored) -> QuestionResult:
    given: dict[str, Any] = {**_about(item), **vars(answer)}
    given["had_less_room"] = answer.had_less_room or _had_less_room(item.request, answer)
    if isinstance(scored, Unscored):
        return QuestionResult(**given, status="failed", reason=scored.reason)
    return QuestionResult(**given, status="scored", **vars(scored))


def _about(item: PlannedQuestion) -> dict[str, Any]:
    """What a result says of its question, answered or not."""
    question = item.question
    return {
        "suite": item.suite.name,
        "id": question.id,
        "task": question.task,
        "condition": item.condition,
        "prompt_sha256": item.prompt_sha256,
        "turns": question.turns,
        "right": question.right,
    }


def _had_less_room(request: Request, answer: Answer) -> bool:
    """The same of an answer that an earlier version kept, which did not write it down; known where it has one turn."""
    room = None if request.first is None else request.first.room
    limit = request.settings.max_new_tokens
    return answer.finish == "length" and len(request.turns) == 1 and room is not None and room < limit


def _suite_facts(suite: Suite, plan: Plan, questions: Sequence[QuestionResult]) -> SuiteFacts:
    num_asked = sum(item.suite is suite for item in plan.questions) // max(1, len(plan.conditions))
    return SuiteFacts(
        name=suite.name,
        title=suite.title,
        version=suite.version,
        metric=suite.metric,
        rule=suite.rule,
        other_rules=suite.other_rules,
        max_new_tokens=plan.settings.max_new_tokens or suite.max_new_tokens,
        highest=suite.highest,
        num_questions=len(suite.questions),
        num_asked=num_asked,
        left_out=suite.left_out,
        files=suite.files,
        facts={**suite.facts, **_scorers(suite, questions), **_repeats(suite)},
    )


def _scorers(suite: Suite, questions: Sequence[QuestionResult]) -> dict[str, str]:
    """What the judges of answers called themselves: more than one name where a server changed its model."""
    names = {name for each in questions if each.suite == suite.name for name in each.details.get(SCORED_BY, ())}
    return {"judge answered as": ", ".join(sorted(names)) or "no name"} if suite.has_judge else {}


def _repeats(suite: Suite) -> dict[str, str]:
    """What a result says of questions that the data holds more than once. They count each time, as in the benchmark's
    own figures, so an interval over them is narrower than it should be.
    """
    first: dict[tuple[str, ...], Question] = {}
    repeating, disagreeing = 0, 0
    for question in suite.questions:
        before = first.setdefault(question.turns, question)
        repeating += before is not question
        disagreeing += before.right != question.right
    if not repeating:
        return {}
    other = f", {disagreeing:,} of them with another right answer" if disagreeing else ""
    text = f"{repeating:,} of {len(suite.questions):,} repeat the text of an earlier one{other}; all of them count"
    return {"repeated questions": text}


def _created(questions: Sequence[QuestionResult]) -> str:
    """When the last answer was made; a second start that asks nothing gives the same."""
    last = max((question.ended for question in questions if question.ended is not None), default=0.0)
    return datetime.fromtimestamp(last, tz=UTC).isoformat(timespec="seconds")
