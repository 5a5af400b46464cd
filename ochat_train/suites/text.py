"""Results as text for a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from data_pipeline.look.text import table
from data_pipeline.text_rules import some_names, visible, visible_line
from ochat_train.suites.intervals import Estimate
from ochat_train.suites.lm_eval import HarnessScore
from ochat_train.suites.results import EvalResults, PairedDifference, QuestionResult, SeenScores, SuiteScore


def results_text(results: EvalResults, *, tasks: bool = False) -> str:
    """All scores. tasks: with a row for each task."""
    rows = [row for row in results.scores if tasks or row.task is None]
    parts = [_head(results)]
    if rows:
        parts.append(table(SCORE_HEAD, [score_cells(row, results) for row in rows]))
    if results.paired:
        parts.append(table(PAIRED_HEAD, [paired_cells(row, results) for row in results.paired]))
    if results.contamination:
        parts.append(table(SEEN_HEAD, [seen_cells(row, results) for row in results.contamination]))
    if results.harness:
        parts.append(table(HARNESS_HEAD, [harness_cells(row) for row in results.harness]))
    parts += _notes(results)
    return "\n\n".join(part for part in parts if part)


def shown_condition(condition: str | None) -> str:
    """A condition as people see it."""
    return "the model's own" if condition is None else visible_line(condition) or "no condition"


def percent(value: float | None) -> str:
    """A share as people see it, a dash where there is none."""
    return "-" if value is None else f"{100 * value:.1f} %"


def points(estimate: Estimate | None, *, highest: float, signed: bool = False) -> str:
    """A score with its interval: in percent, or in points where the best is not 1."""
    if estimate is None:
        return "-"
    scale, unit = (100.0, " %") if highest == 1.0 else (1.0, "")
    sign = "+" if signed else ""
    mean, low, high = (f"{scale * value:{sign}.1f}" for value in (estimate.mean, estimate.low, estimate.high))
    return f"{mean}{unit} [{low}, {high}]"


SCORE_HEAD = (
    *("suite", "condition", "questions", "score [95 %]", "other rules", "answered", "empty", "cut", "tokens"),
    *("time", "tokens/s", "not scored"),
)


def score_cells(row: SuiteScore, results: EvalResults) -> list[str]:
    """A row of scores, under SCORE_HEAD."""
    highest = results.facts_of(row.suite).highest
    others = ", ".join(f"{rule} {points(estimate, highest=highest)}" for rule, estimate in row.others.items())
    missing = [f"{row.num_failed:,} failed"] * bool(row.num_failed)
    missing += [f"{row.num_too_long:,} too long"] * bool(row.num_too_long)
    return [
        row.suite if row.task is None else f"{row.suite}: {visible_line(row.task)}",
        shown_condition(row.condition),
        f"{row.num_scored:,}",
        points(row.score, highest=highest),
        others or "-",
        percent(row.answered),
        percent(row.empty),
        percent(row.cut),
        "-" if row.mean_tokens is None else f"{row.mean_tokens:,.1f}",
        "-" if row.seconds is None else _duration(row.seconds),
        "-" if row.tokens_per_second is None else f"{row.tokens_per_second:,.0f}",
        ", ".join(missing) or "-",
    ]


PAIRED_HEAD = ("suite", "difference", "questions", "second - first [95 %]", "first better", "second better")


def paired_cells(row: PairedDifference, results: EvalResults) -> list[str]:
    """A row of differences, under PAIRED_HEAD."""
    return [
        row.suite,
        f"{shown_condition(row.second)} - {shown_condition(row.first)}",
        f"{row.num_questions:,}",
        points(row.difference, highest=results.facts_of(row.suite).highest, signed=True),
        f"{row.num_first_better:,}",
        f"{row.num_second_better:,}",
    ]


SEEN_HEAD = ("suite", "condition", "seen in training", "score of these", "score without them [95 %]")


def seen_cells(row: SeenScores, results: EvalResults) -> list[str]:
    """A row of questions in the training data, under SEEN_HEAD."""
    highest = results.facts_of(row.suite).highest
    return [
        row.suite,
        shown_condition(row.condition),
        f"{row.num_seen:,} of {row.num_questions:,} questions",
        points(row.score_seen, highest=highest),
        points(row.score_unseen, highest=highest),
    ]


HARNESS_HEAD = ("lm-eval task", "condition", "metric", "value ± standard error", "questions")


def harness_cells(row: HarnessScore) -> list[str]:
    """A figure of lm-evaluation-harness, under HARNESS_HEAD."""
    error = "" if row.standard_error is None else f" ± {row.standard_error:.4f}"
    questions = "-" if row.num_questions is None else f"{row.num_questions:,}"
    return [
        row.task,
        shown_condition(row.condition),
        f"{row.metric}, {row.filter}",
        f"{row.value:.4f}{error}",
        questions,
    ]


def _head(results: EvalResults) -> str:
    settings = results.settings
    how = "greedy" if settings.temperature == 0 else f"temperature {settings.temperature:g}, top-p {settings.top_p:g}"
    shots = f", {settings.few_shot} examples" if settings.few_shot else ""
    return visible(f"{results.model.name} ({results.engine}; {how}{shots}; seed {settings.seed})")


def _notes(results: EvalResults) -> list[str]:
    notes = room_notes(results)
    for facts in results.suites:
        if facts.num_asked < facts.num_questions:
            notes.append(
                f"{facts.name}: a random sample of {facts.num_asked:,} of {facts.num_questions:,} questions, of each "
                f"task in proportion (seed {results.settings.seed})"
            )
        notes += [f"{facts.name}: left out {count:,} rows: {reason}" for reason, count in facts.left_out.items()]
        notes += [f"{facts.name}: {name}: {text}" for name, text in facts.facts.items()]
    if results.failed_tries:
        tries = ", ".join(f"{count:,} x {reason}" for reason, count in results.failed_tries.items())
        notes.append(f"tries without an answer: {tries}")
    return [visible("\n".join(notes))] if notes else []


def room_notes(results: EvalResults) -> list[str]:
    """What the length of the context did to the questions of each suite under each condition."""
    return [text for row in results.scores if row.task is None for text in _room_notes(row, results)]


def _room_notes(row: SuiteScore, results: EvalResults) -> Iterator[str]:
    place = f"{row.suite}, {shown_condition(row.condition)}"
    if row.num_too_long:
        ids = [question.id for question in results.questions if _is_too_long(question, row)]
        yield (
            f"{place}: {row.num_too_long:,} of {row.num_questions:,} questions do not fit into the context and are in "
            f"no score: {some_names(ids)}"
        )
    if row.num_had_less_room:
        limit = results.facts_of(row.suite).max_new_tokens
        yield (
            f"{place}: {row.num_had_less_room:,} answers were cut before {limit:,} tokens, at the end of the context; "
            "they are scored as far as they go"
        )


def _is_too_long(question: QuestionResult, row: SuiteScore) -> bool:
    return (question.suite, question.condition, question.status) == (row.suite, row.condition, "too_long")


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 100 else f"{seconds / 60:.1f} min"
