"""What `ochat eval` says before it asks: how much, under which conditions, and what does not fit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from data_pipeline.text_rules import visible_line
from ochat_train.suites.plan import Condition, Plan
from ochat_train.suites.results import EvalSettings
from ochat_train.suites.suite import Suite
from ochat_train.suites.text import shown_condition

_MOST_NAMED = 5  # conditions on the line


def what_is_asked(
    suites: Sequence[Suite], conditions: Sequence[Condition], settings: EvalSettings, folder: Path
) -> Iterator[str]:
    """A line for each suite, and one for all of them. folder: of answers and results."""
    num_asked = 0
    for suite in suites:
        num_questions = len(suite.questions)
        num_sampled = min(settings.limit or num_questions, num_questions)
        num_asked += num_sampled
        part = f"{num_sampled:,} of {num_questions:,} questions, a random sample"
        which = part if num_sampled < num_questions else f"all {num_questions:,} questions"
        most = settings.max_new_tokens or suite.max_new_tokens
        yield f"{suite.name}: {which}; answers of at most {most:,} tokens"
    if num_asked:
        yield f"{num_asked * len(conditions):,} answers under {_named(conditions)}; kept in {folder}"


def what_does_not_fit(plan: Plan) -> Iterator[str]:
    """What the length of the context does to the first turns, where it is known. Nothing where all of it fits."""
    rooms = [(item.request.first.room, item.request.settings) for item in plan.questions if item.request.first]
    known = [(room, settings.max_new_tokens) for room, settings in rooms if room is not None]
    num_too_long = sum(room < 1 for room, _ in known)
    num_short = sum(1 <= room < most for room, most in known)
    if num_too_long:
        yield f"prompts that do not fit into the context, are not asked, and are in no score: {num_too_long:,}"
    if num_short:
        yield f"prompts that leave less room in the context than the longest answer needs: {num_short:,}"


def _named(conditions: Sequence[Condition]) -> str:
    names = [visible_line(shown_condition(condition)) for condition in conditions[:_MOST_NAMED]]
    more = f" and {len(conditions) - _MOST_NAMED:,} more" if len(conditions) > _MOST_NAMED else ""
    return f"{len(conditions):,} condition{'s' * (len(conditions) != 1)} ({', '.join(names)}{more})"
