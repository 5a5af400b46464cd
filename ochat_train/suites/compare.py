"""Two results on the same questions: the difference, and which questions were won and lost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from data_pipeline.errors import UserError
from data_pipeline.look.text import table
from data_pipeline.text_rules import visible
from ochat_train.suites.results import EvalResults, PairedDifference, QuestionResult, SuiteFacts
from ochat_train.suites.scores import paired_difference
from ochat_train.suites.text import points, shown_condition

COMPARISON_FILE = "comparison.json"
_MOST_LISTED = 10  # in the text; the file has all
_REMEDY = "run both with the same suites, data, --limit and --seed"
_SCORING_FACTS = ("judge", "judge's instructions")  # of a suite: with others, its scores are others
_SETTINGS = ("temperature", "top_p", "few_shot")  # that decide answers; results may differ in them on purpose


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One suite: this - other. row.first is the other's condition, row.second this one's. won, lost: ids of questions
    that this one answered better and worse.
    """

    row: PairedDifference
    won: tuple[str, ...]
    lost: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """other, this: names of the models. differences: by suite and condition. notes: other differences, and what was
    not compared.
    """

    other: str
    this: str
    differences: tuple[Difference, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The document of comparison.json."""
        return asdict(self)


def compare(other: EvalResults, this: EvalResults) -> Comparison:
    """The suites that both have, under the conditions that both have; where each has only one condition, under those.

    Raises UserError where they have no suite in common, were not asked the same questions, or were scored otherwise.
    """
    facts = {suite.name: suite for suite in other.suites}
    shared = [suite for suite in this.suites if suite.name in facts]
    if not shared:
        raise UserError("--against", "has none of these suites", _REMEDY)
    pairs = _pairs(other, this)
    differences: list[Difference] = []
    for suite in shared:
        _check_same_data(facts[suite.name], suite)
        _check_same_rule(facts[suite.name], suite)
        for theirs, ours in pairs:
            first = _asked(other, suite.name, theirs)
            second = _asked(this, suite.name, ours)
            _check_same_questions(suite.name, first, second)
            differences.append(_difference(first, second, seed=this.settings.seed, highest=suite.highest))
    names = _names(other, this)
    return Comparison(
        other=names[0],
        this=names[1],
        differences=tuple(differences),
        notes=(*_asked_otherwise(other, this), *_left_out(other, this, pairs)),
    )


def _names(other: EvalResults, this: EvalResults) -> tuple[str, str]:
    """What to call the two: models of the same name are told apart by their hash, or by their address."""
    models = (other.model, this.model)
    if models[0].name != models[1].name or models[0].identity == models[1].identity:
        return models[0].name, models[1].name
    first, second = (f"{model.name} ({model.sha256[:8] if model.sha256 else model.url})" for model in models)
    return first, second


def _asked_otherwise(other: EvalResults, this: EvalResults) -> Iterator[str]:
    """How the two were not asked in the same way."""
    pairs = [(name, getattr(this.settings, name), getattr(other.settings, name)) for name in _SETTINGS]
    pairs += [("engine", this.engine, other.engine)]
    versions = this.engine_versions, other.engine_versions
    pairs += [(name, versions[0][name], versions[1][name]) for name in versions[0] if name in versions[1]]
    tokens = {suite.name: suite.max_new_tokens for suite in other.suites}
    pairs += [
        (f"max_new_tokens of {suite.name}", suite.max_new_tokens, tokens[suite.name])
        for suite in this.suites
        if suite.name in tokens
    ]
    for name, ours, theirs in pairs:
        if ours != theirs:
            yield f"asked differently: {name} {ours} and {theirs}"


def _left_out(other: EvalResults, this: EvalResults, pairs: Sequence[tuple[str | None, str | None]]) -> Iterator[str]:
    """What only one of the two has."""
    for results, place in ((other, 0), (this, 1)):
        compared = {pair[place] for pair in pairs}
        names = [shown_condition(each) for each in results.conditions if each not in compared]
        theirs = {suite.name for suite in (this if results is other else other).suites}
        names += [suite.name for suite in results.suites if suite.name not in theirs]
        if names:
            yield f"not compared, because only {results.model.name} has it: {', '.join(names)}"


def comparison_text(comparison: Comparison, highest: Mapping[str, float]) -> str:
    """The table, and the first of the questions that were won and lost. highest: suite -> best value of an answer."""
    head = ("suite", "condition", "questions", "difference [95 %]", "won", "lost")
    rows = [
        (
            difference.row.suite,
            _conditions_text(difference.row),
            f"{difference.row.num_questions:,}",
            points(difference.row.difference, highest=highest.get(difference.row.suite, 1.0), signed=True),
            f"{len(difference.won):,}",
            f"{len(difference.lost):,}",
        )
        for difference in comparison.differences
    ]
    lines = [f"{comparison.this} - {comparison.other}"]
    lines.append(table(head, rows))
    for difference in comparison.differences:
        place = f"{difference.row.suite}, {_conditions_text(difference.row)}"
        lines += [f"{place}: {word}: {_listed(ids)}" for word, ids in _won_and_lost(difference) if ids]
    lines += comparison.notes
    return visible("\n".join(lines))


def _won_and_lost(difference: Difference) -> tuple[tuple[str, tuple[str, ...]], ...]:
    return ("won", difference.won), ("lost", difference.lost)


def _conditions_text(row: PairedDifference) -> str:
    if row.first == row.second:
        return shown_condition(row.second)
    return f"{shown_condition(row.second)} - {shown_condition(row.first)}"


def _listed(ids: Sequence[str]) -> str:
    more = f", and {len(ids) - _MOST_LISTED:,} more" if len(ids) > _MOST_LISTED else ""
    return ", ".join(ids[:_MOST_LISTED]) + more


def _pairs(other: EvalResults, this: EvalResults) -> list[tuple[str | None, str | None]]:
    shared = [condition for condition in this.conditions if condition in other.conditions]
    if shared:
        return [(condition, condition) for condition in shared]
    if len(this.conditions) == len(other.conditions) == 1:
        return [(other.conditions[0], this.conditions[0])]
    names = [", ".join(map(shown_condition, results.conditions)) for results in (this, other)]
    raise UserError("--against", f"has other conditions: {names[0]}, and {names[1]}", "choose one with --condition")


def _asked(results: EvalResults, suite: str, condition: str | None) -> list[QuestionResult]:
    return [row for row in results.questions if row.suite == suite and row.condition == condition]


def _check_same_data(theirs: SuiteFacts, ours: SuiteFacts) -> None:
    hashes = [sorted(file.sha256 for file in suite.files) for suite in (theirs, ours)]
    if theirs.version != ours.version or hashes[0] != hashes[1]:
        raise UserError("--against", f"was asked {ours.name} from other data, or by another version", _REMEDY)


def _check_same_rule(theirs: SuiteFacts, ours: SuiteFacts) -> None:
    names = [name for name in _SCORING_FACTS if theirs.facts.get(name) != ours.facts.get(name)]
    names += ["rule"] if theirs.rule != ours.rule else []
    if names:
        problem = f"was scored otherwise in {ours.name} ({' and '.join(names)}), so a difference would say nothing"
        raise UserError("--against", problem, "run both with the same --judge-model and --answer-pattern")


def _check_same_questions(suite: str, first: Sequence[QuestionResult], second: Sequence[QuestionResult]) -> None:
    ids = [{row.id for row in rows} for rows in (first, second)]
    if ids[0] != ids[1]:
        problem = f"{len(ids[0] ^ ids[1]):,} questions of {suite} were asked of only one of the two"
        raise UserError("--against", problem, _REMEDY)


def _difference(
    first: Sequence[QuestionResult], second: Sequence[QuestionResult], *, seed: int, highest: float
) -> Difference:
    values = {row.id: row.value for row in first if row.value is not None}
    changes = [(row.id, row.value - values[row.id]) for row in second if row.value is not None and row.id in values]
    return Difference(
        row=paired_difference(first, second, seed=seed, highest=highest),
        won=tuple(id for id, change in changes if change > 0),
        lost=tuple(id for id, change in changes if change < 0),
    )
