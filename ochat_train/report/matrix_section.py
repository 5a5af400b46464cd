"""A condition matrix as a section of a page: a heat map; and in words whether each condition was learnt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ochat_train.evaluation.condition_matrix import ConditionMatrix
from ochat_train.report.heat import HEAT_MEANING, HEAT_STEPS, row_shades
from ochat_train.report.page import Cell, Section, text_cells
from ochat_train.report.tables import learnt_text, number_text, shown_condition

_HOW_TO_READ = (
    "Nats per token of each class's held-out answers under each condition; the less colour, the likelier. A class has "
    "learnt its condition where its own (outlined) is the lowest of its row by enough."
)


def matrix_section(
    heading: str, matrix: ConditionMatrix, *, own_conditions: Mapping[str, str], notes: Sequence[str] = ()
) -> Section:
    """own_conditions: of each class. notes: further sentences, such as `verdict_lines`."""
    head = ["answers of class", *(f"under {shown_condition(condition)}" for condition in matrix.conditions)]
    rows = []
    for name, values in matrix.nll.items():
        cells = [
            Cell(text=number_text(value, ".4f"), shade=shade, outlined=condition == own_conditions.get(name))
            for condition, value, shade in zip(matrix.conditions, values, row_shades(values), strict=True)
        ]
        rows.append([*text_cells([name]), *cells])
    return Section(
        heading=heading,
        paragraphs=[_HOW_TO_READ, *notes],
        legend=heat_legend(),
        head=head,
        rows=rows,
    )


def verdict_headline(matrix: ConditionMatrix) -> str:
    """Of how many classes the condition was learnt: a condition that makes all answers likelier gives one class a yes,
    and the others a no.
    """
    verdicts = [entry.verdict for entry in matrix.learnt.values()]
    weak = f", weak for {verdicts.count('weak')}" if "weak" in verdicts else ""
    return f"Yes for {verdicts.count('yes')} of {len(verdicts)} classes{weak}."


def verdict_lines(matrix: ConditionMatrix) -> list[str]:
    """A sentence for each class of a matrix: was its condition learnt? One for all where there was none to learn."""
    if matrix.learnt and all(entry.verdict is None for entry in matrix.learnt.values()):
        return ["It was trained with one condition, so there was none to learn."]
    return [f"{name}: {learnt_text(matrix.learnt.get(name))}." for name in matrix.nll]


def heat_legend() -> tuple[str, Sequence[Cell]]:
    """What the colours mean, which are the same in every matrix."""
    return f"Colours, the same in every matrix: {HEAT_MEANING}", [
        Cell(text=step.label, shade=step.shade) for step in HEAT_STEPS
    ]
