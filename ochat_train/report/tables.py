"""Reports as tables for people; the same numbers as `--json`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from data_pipeline.look.text import aligned
from data_pipeline.text_rules import visible

if TYPE_CHECKING:  # torch takes seconds to import, and most reports do without
    pass


def validation_table(
    line: Mapping[str, Any], *, shown: Callable[[str], str] | None = None
) -> tuple[list[str], list[tuple[str, ...]]]:
    """Head and rows of a validation: a class's nll and accuracy, its nll under each condition, whether it learnt its
    own.

    line: of validation.jsonl. shown: how to write a class or condition; default: a class as it is, shown_condition.
    """
    rows = [
        (
            shown(name) if shown else name,
            number_text(row["nll"], ".4f"),
            number_text(row["accuracy"], ".1%"),
            *(number_text(value, ".4f") for value in line["matrix"].get(name, [None] * len(line["conditions"]))),
            learnt_text(line["learnt"].get(name), shown=shown),
        )
        for name, row in line["classes"].items()
    ]
    return ["class", "nll", "accuracy", *matrix_columns(line["conditions"], shown=shown)], rows


def matrix_columns(conditions: Sequence[str], *, shown: Callable[[str], str] | None = None) -> list[str]:
    """Names of the columns of a condition matrix: one for each condition, and learnt_text's."""
    return [*(f"under {(shown or shown_condition)(condition)}" for condition in conditions), "learnt"]


def learnt_text(learnt: Mapping[str, Any] | None, *, shown: Callable[[str], str] | None = None) -> str:
    """Whether a class's condition was learnt, in words: the margin over the nearest other condition, in nats per token.

    shown: how to write a condition; default: shown_condition.
    """
    if learnt is None:
        return "not measured"
    interval = f"{learnt['margin']:.4f} [{learnt['low']:.4f}, {learnt['high']:.4f}] nats/token"
    return f"{'yes' if learnt['learnt'] else 'no'}: {interval} over {(shown or shown_condition)(learnt['nearest'])}"


def shown_condition(condition: str) -> str:
    """A condition as it is named to people."""
    return visible(condition, kept="") or "no condition"


def number_text(value: float | None, form: str) -> str:
    """A number, or a dash where there is none."""
    return "-" if value is None else format(value, form)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows under a head, columns aligned. Cells may hold names of users' data: what is not visible is escaped."""
    return "\n".join(aligned([[visible(cell, kept="") for cell in line] for line in (head, *rows)]))
