"""The results of `ochat eval` as one page: scores side by side, the worst tasks, answers, and how they were made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from ochat_train.report.page import Cell, Example, Section, render_page, text_cells
from ochat_train.report.pictures import Picture, interval_chart
from ochat_train.report.tables import number_text
from ochat_train.suites.contamination import RULE
from ochat_train.suites.intervals import Estimate
from ochat_train.suites.results import EvalResults, QuestionResult, SuiteFacts, SuiteScore
from ochat_train.suites.text import room_notes, shown_condition

_MOST_TASKS, _MOST_EXAMPLES = 10, 6  # of each suite
_MOST_CHARACTERS = 1_500  # of a text in an example
_HOW_TO_READ = (
    "Means over questions with 95 % intervals (bootstrap by question). Answered: the share in which the rule found an "
    "answer. Cut off: the share of answers that reached the limit of tokens. Failed questions got no answer, or none "
    "that could be scored, and are in no mean."
)
_HEAD = ("suite", "condition", "score", "95 % interval", "answered", "empty", "cut off", "tokens", "scored", "failed")


def eval_page(results: EvalResults) -> str:
    """The page, as text. Everything in it that a model or a benchmark wrote is escaped."""
    names = ", ".join(dict.fromkeys([*(suite.name for suite in results.suites), *(r.task for r in results.harness)]))
    subtitle = f"{names}; engine: {results.engine}; {results.created}"
    return render_page(f"Evaluation: {results.model.name}", subtitle, list(_sections(results)))


def _sections(results: EvalResults) -> Iterator[Section]:
    if results.suites:
        yield _scores(results)
        yield from _differences(results)
    yield from _contamination(results)
    yield from _harness(results)
    for suite in results.suites:
        yield from _tasks(suite, results)
    for suite in results.suites:
        yield from _examples(suite, results)
    yield from _rules(results)
    yield _settings(results)


def _scores(results: EvalResults) -> Section:
    whole = [row for row in results.scores if row.task is None]
    rows = [
        text_cells(
            [
                row.suite,
                shown_condition(row.condition),
                _score(row.score, results.facts_of(row.suite)),
                _interval(row.score, results.facts_of(row.suite)),
                number_text(row.answered, ".1%"),
                number_text(row.empty, ".1%"),
                number_text(row.cut, ".1%"),
                number_text(row.mean_tokens, ",.1f"),
                f"{row.num_scored:,}",
                f"{row.num_failed + row.num_too_long:,}",
            ]
        )
        for row in whole
    ]
    groups = {suite.name: [row for row in whole if row.suite == suite.name] for suite in results.suites}
    pictures = [_chart(results, groups)]
    return Section(
        heading="Scores", paragraphs=[_HOW_TO_READ, *room_notes(results)], pictures=pictures, head=_HEAD, rows=rows
    )


def _chart(results: EvalResults, groups: Mapping[str, Sequence[SuiteScore]]) -> Picture:
    """Scores of groups under each condition, as shares of the highest score."""
    rows: dict[str, list[Estimate | None]] = {}
    for name, group in groups.items():
        by_condition = {row.condition: row for row in group}
        rows[name] = [_share(by_condition.get(condition), results) for condition in results.conditions]
    return interval_chart(
        rows, [shown_condition(condition) for condition in results.conditions], unit="score, 1 is the best"
    )


def _share(row: SuiteScore | None, results: EvalResults) -> Estimate | None:
    if row is None or row.score is None:
        return None
    highest = results.facts_of(row.suite).highest
    return Estimate(mean=row.score.mean / highest, low=row.score.low / highest, high=row.score.high / highest)


def _differences(results: EvalResults) -> Iterator[Section]:
    rows = []
    for row in results.paired:
        facts = results.facts_of(row.suite)
        rows.append(
            text_cells(
                [
                    row.suite,
                    f"{shown_condition(row.second)} minus {shown_condition(row.first)}",
                    _score(row.difference, facts, sign="+"),
                    _interval(row.difference, facts, sign="+"),
                    f"{row.num_second_better:,}",
                    f"{row.num_first_better:,}",
                    f"{row.num_questions:,}",
                ]
            )
        )
    if rows:
        text = "The same questions under two conditions. An interval that holds 0 does not tell them apart."
        head = ("suite", "difference", "mean", "95 % interval", "better", "worse", "questions")
        yield Section(heading="Differences between conditions", paragraphs=[text], head=head, rows=rows)


def _contamination(results: EvalResults) -> Iterator[Section]:
    if not results.contamination:
        return
    rows = []
    for row in results.contamination:
        facts = results.facts_of(row.suite)
        cells = [
            row.suite,
            shown_condition(row.condition),
            f"{row.num_seen:,} of {row.num_questions:,} ({row.num_seen / row.num_questions:.1%})",
            _score(row.score_seen, facts),
            f"{_score(row.score_unseen, facts)} ({_interval(row.score_unseen, facts)})",
            f"{row.num_unchecked:,}",
        ]
        rows.append(text_cells(cells))
    first = results.contamination[0]
    data = f"Training data: {first.num_conversations:,} conversations, fingerprint {first.fingerprint[:16]}."
    head = ("suite", "condition", "seen in training", "score of these", "score without them", "not checkable")
    text = f"A question counts as seen where {RULE}."
    yield Section(heading="Questions in the training data", paragraphs=[text, data], head=head, rows=rows)


def _harness(results: EvalResults) -> Iterator[Section]:
    rows = [
        text_cells(
            [
                f"{row.task} ({row.task_version})" if row.task_version else row.task,
                shown_condition(row.condition),
                f"{row.metric}, {row.filter}",
                f"{row.value:.4f}",
                number_text(row.standard_error, ".4f"),
                number_text(row.num_questions, ","),
                number_text(row.few_shot, ","),
            ]
        )
        for row in results.harness
    ]
    if rows:
        version = results.harness_versions.get("lm_eval", "of an unknown version")
        text = f"Figures and standard errors of lm-evaluation-harness {version}."
        head = ("task", "condition", "metric", "value", "standard error", "questions", "examples")
        yield Section(heading="lm-evaluation-harness", paragraphs=[text], head=head, rows=rows)


def _tasks(suite: SuiteFacts, results: EvalResults) -> Iterator[Section]:
    """The tasks with the lowest scores, by their best condition."""
    by_task: dict[str, list[SuiteScore]] = {}
    for row in results.scores:
        if row.suite == suite.name and row.task is not None:
            by_task.setdefault(row.task, []).append(row)
    scored = {task: rows for task, rows in by_task.items() if any(row.score is not None for row in rows)}
    best = {task: max(row.score.mean for row in rows if row.score is not None) for task, rows in scored.items()}
    worst = sorted(best, key=lambda task: best[task])[:_MOST_TASKS]
    if not worst:
        return
    text = f"The {len(worst)} of {len(by_task)} tasks whose best condition scores lowest."
    rows = [
        text_cells([task, *(_score(_of(scored[task], condition), suite) for condition in results.conditions)])
        for task in worst
    ]
    head = ["task", *map(shown_condition, results.conditions)]
    pictures = [_chart(results, {task: scored[task] for task in worst})]
    yield Section(heading=f"Worst tasks: {suite.title}", paragraphs=[text], pictures=pictures, head=head, rows=rows)


def _of(rows: Sequence[SuiteScore], condition: str | None) -> Estimate | None:
    return next((row.score for row in rows if row.condition == condition), None)


def _examples(suite: SuiteFacts, results: EvalResults) -> Iterator[Section]:
    """Questions with their answers under every condition: first those that conditions answer differently well."""
    by_id: dict[str, list[QuestionResult]] = {}
    for question in results.questions:
        if question.suite == suite.name:
            by_id.setdefault(question.id, []).append(question)
    groups = sorted(by_id.values(), key=lambda group: -_spread(group))[:_MOST_EXAMPLES]
    if groups:
        examples = [_example(group, suite) for group in groups]
        text = "Questions that the conditions answer most differently come first."
        yield Section(heading=f"Answers: {suite.title}", paragraphs=[text], examples=examples)


def _spread(group: Sequence[QuestionResult]) -> float:
    values = [question.value for question in group if question.value is not None]
    return max(values) - min(values) if values else -1.0


def _example(group: Sequence[QuestionResult], suite: SuiteFacts) -> Example:
    first = group[0]
    parts = [("question", " / ".join(first.turns))]
    if first.right:
        parts.append(("right answer", " or ".join(first.right)))
    for question in group:
        outcome = f"{shown_condition(question.condition)}: {_outcome(question, suite)}"
        parts.append((outcome, "\n---\n".join(question.texts)))
    head = first.id if first.id.startswith(first.task) else f"{first.task}, {first.id}"
    return Example(heading=head, parts=[(name, _short(text)) for name, text in parts])


def _outcome(question: QuestionResult, suite: SuiteFacts) -> str:
    if question.status != "scored" or question.value is None:
        return question.reason or question.status
    if suite.highest == 1.0:
        return "right" if question.value == 1.0 else "wrong" if question.is_answered else "no answer found"
    return f"{question.value:g} points"


def _rules(results: EvalResults) -> Iterator[Section]:
    rows = []
    for suite in results.suites:
        facts = [f"{name}: {text}" for name, text in {**suite.other_rules, **suite.facts}.items()]
        facts += [f"left out: {count:,} {reason}" for reason, count in suite.left_out.items()]
        files = [f"{file.name} (sha256 {file.sha256[:16]})" for file in suite.files[:3]]
        more = len(suite.files) - len(files)
        files += [f"and {more:,} more"] if more > 0 else []
        asked = f"{suite.num_asked:,} of {suite.num_questions:,}"
        cells = [suite.title, suite.rule, "\n".join(facts), asked, f"{suite.max_new_tokens:,}", "\n".join(files)]
        rows.append(text_cells(cells))
    if rows:
        head = ("suite", "rule", "more", "questions", "most tokens", "data")
        yield Section(heading="How it was scored", head=head, rows=rows)


def _settings(results: EvalResults) -> Section:
    """What was asked, and how."""
    facts = {f"model: {key}": value for key, value in vars(results.model).items() if value is not None}
    facts |= {f"settings: {key}": value for key, value in vars(results.settings).items()}
    facts |= {f"engine: {name}": version for name, version in results.engine_versions.items()}
    facts |= {f"version: {name}": version for name, version in results.versions.items()}
    facts |= {f"lm-eval: {name}": version for name, version in results.harness_versions.items()}
    facts |= {f"tries without an answer: {reason}": count for reason, count in results.failed_tries.items()}
    rows = [[Cell(text=name), Cell(text="-" if value is None else str(value))] for name, value in facts.items()]
    return Section(heading="Settings and versions", head=("what", "value"), rows=rows)


def _score(score: Estimate | None, suite: SuiteFacts, *, sign: str = "") -> str:
    if score is None:
        return "-"
    return format(score.mean, f"{sign}.1%" if suite.highest == 1.0 else f"{sign}.2f")


def _interval(score: Estimate | None, suite: SuiteFacts, *, sign: str = "") -> str:
    if score is None:
        return "-"
    form = f"{sign}.1%" if suite.highest == 1.0 else f"{sign}.2f"
    return f"{score.low:{form}} to {score.high:{form}}"


def _short(text: str) -> str:
    return text if len(text) <= _MOST_CHARACTERS else f"{text[: _MOST_CHARACTERS - 4]} ..."
