"""The benchmarks of a recipe (`validation.benchmarks`): which questions, under which conditions."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

from data_pipeline.errors import UserError
from data_pipeline.text_rules import quoted
from ochat_train.recipe.sections.validation import BenchmarkSettings, ValidationSettings
from ochat_train.suites.plan import sampled
from ochat_train.suites.suite import Answer, Question, Scored, Suite, SuiteOptions
from ochat_train.suites.table import make_suites


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A suite as a recipe asks it. place: its key of the recipe. limit: None where the recipe leaves it open.

    questions: all of the suite, in the order in which fewer of them are taken.
    """

    place: str
    suite: Suite
    questions: tuple[Question, ...]
    conditions: tuple[str, ...]
    limit: int | None
    max_new_tokens: int

    def sample(self, limit: int | None, *, seed: int) -> Benchmark:
        """This benchmark with at most `limit` of its questions, the same for the same seed."""
        of_suite = replace(self.suite, questions=self.questions)
        return replace(self, questions=tuple(sampled(of_suite, limit=limit, seed=seed)))

    def scored(self, texts: Sequence[str], *, cut: Sequence[bool]) -> list[Scored]:
        """The scores of answers to the questions, in their order. cut: whether an answer reached the limit of tokens.

        Raises UserError where one cannot be scored.
        """
        answers = [
            Answer(texts=(text,), num_tokens=None, finish="length" if is_cut else "stop", started=0.0, ended=0.0)
            for text, is_cut in zip(texts, cut, strict=True)
        ]
        found = self.suite.score(list(zip(self.questions, answers, strict=True)))
        scored = [score for score in found if isinstance(score, Scored)]
        if len(scored) < len(texts):
            raise UserError(self.place, f"{self.suite.name} could not score all answers", "name another suite")
        return scored


def load_benchmarks(settings: ValidationSettings, *, conditions: Sequence[str]) -> list[Benchmark]:
    """The benchmarks of a recipe. conditions: of all classes, asked where the recipe names none.

    Raises UserError, with the key of the recipe, for an unknown suite or condition, for data that cannot be read, and
    for a suite that needs more than one answer and its text.
    """
    known = list(dict.fromkeys(conditions))
    found = []
    for number, entry in enumerate(settings.benchmarks):
        place = f"validation.benchmarks.{number}"
        suite = _suite(entry, place, pattern=settings.answer_pattern)
        asked = entry.conditions or known
        if unknown := [condition for condition in asked if condition not in known]:
            raise UserError(
                f"{place}.conditions",
                f"no class has the condition {quoted(unknown[0])}",
                f"known: {', '.join(map(quoted, known))}",
            )
        found.append(
            Benchmark(
                place=place,
                suite=suite,
                questions=suite.questions,
                conditions=tuple(dict.fromkeys(asked)),
                limit=entry.limit,
                max_new_tokens=entry.answer_tokens or suite.max_new_tokens,
            )
        )
    asked_suites = [benchmark.suite.name for benchmark in found]
    if twice := {name for name in asked_suites if asked_suites.count(name) > 1}:
        raise UserError("validation.benchmarks", f"names {', '.join(sorted(twice))} twice", "name each suite once")
    return found


def digest(benchmarks: Sequence[Benchmark]) -> str:
    """sha256 over all questions, for hosts that have to ask the same."""
    rows = [[b.suite.name, b.suite.version, [[q.id, q.turns, q.right] for q in b.questions]] for b in benchmarks]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def _suite(entry: BenchmarkSettings, place: str, *, pattern: str | None) -> Suite:
    data = [] if entry.data is None else [entry.data]
    try:
        suites = make_suites([entry.suite], data, SuiteOptions(answer_pattern=pattern))
    except UserError as error:
        where = f"{place}.suite" if error.place == "--suite" else f"{place}: {error.place}"
        raise UserError(where, error.problem, error.remedy) from None
    if len(suites) != 1:
        remedy = f"name one of {', '.join(suite.name for suite in suites)}"
        raise UserError(f"{place}.suite", f"{entry.suite} stands for several suites", remedy)
    [suite] = suites
    if any(len(question.turns) > 1 for question in suite.questions):
        problem = f"{suite.name} asks more than one question in a conversation, so it cannot be asked during training"
        raise UserError(f"{place}.suite", problem, "use it with `ochat eval`")
    return suite
