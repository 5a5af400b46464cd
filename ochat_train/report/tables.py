"""Results as tables for people; the same numbers as `--json`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from data_pipeline.look.text import aligned
from data_pipeline.text_rules import visible
from ochat_train.evaluation.condition_matrix import Learnt
from ochat_train.evaluation.results import Evaluation


def evaluation_table(
    evaluation: Evaluation, *, shown: Callable[[str], str] | None = None
) -> tuple[list[str], list[tuple[str, ...]]]:
    """Head and rows: a class's nll and accuracy, its nll under each condition, whether it learnt its own.

    shown: how to write a class or condition; default: a class unchanged, a condition by shown_condition.
    """
    matrix = evaluation.matrix
    unknown = [None] * len(matrix.conditions)
    rows = [
        (
            shown(name) if shown else name,
            number_text(scores.nll, ".4f"),
            number_text(scores.accuracy, ".1%"),
            *(number_text(value, ".4f") for value in matrix.nll.get(name, unknown)),
            learnt_text(matrix.learnt.get(name), shown=shown),
        )
        for name, scores in evaluation.classes.items()
    ]
    return ["class", "nll", "accuracy", *matrix_columns(matrix.conditions, shown=shown)], rows


def matrix_columns(conditions: Sequence[str], *, shown: Callable[[str], str] | None = None) -> list[str]:
    """Names of the columns of a condition matrix: one for each condition, and learnt_text's."""
    return [*(f"under {(shown or shown_condition)(condition)}" for condition in conditions), "learnt"]


def learnt_text(learnt: Learnt | None, *, shown: Callable[[str], str] | None = None) -> str:
    """Whether a class's condition was learnt, in words: the margin over the nearest other condition, in nats per token.

    shown: how to write a condition; default: shown_condition.
    """
    if learnt is None:
        return "not measured"
    margin, low, high = (number_text(value, ".4f") for value in (learnt.margin, learnt.low, learnt.high))
    answer, nearest = "yes" if learnt.learnt else "no", (shown or shown_condition)(learnt.nearest)
    return f"{answer}: {margin} [{low}, {high}] nats/token over {nearest}"


def shown_condition(condition: str) -> str:
    """A condition as people see it."""
    return visible(condition, kept="") or "no condition"


def number_text(value: float | None, form: str) -> str:
    """A number, or a dash where there is none."""
    return "-" if value is None else format(value, form)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows under a head, columns aligned. Cells may hold names of users' data: what is not visible is escaped."""
    return "\n".join(aligned([[visible(cell, kept="") for cell in line] for line in (head, *rows)]))


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown. Cells are Markdown already: whoever makes them escapes what comes from data."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
