"""A condition matrix as a section of a page: a heat map, and for each class whether its condition was learnt."""

from __future__ import annotations

from collections.abc import Mapping

from ochat_train.evaluation.condition_matrix import ConditionMatrix
from ochat_train.report.page import Cell, Section
from ochat_train.report.pictures import row_shades
from ochat_train.report.tables import learnt_text, matrix_columns, number_text

_HOW_TO_READ = (
    "Nats per token of each class's held-out answers under each condition; lower (lighter) is likelier. A class has "
    "learnt its condition where its own (outlined) is the lowest of its row."
)


def matrix_section(heading: str, matrix: ConditionMatrix, *, own_conditions: Mapping[str, str]) -> Section:
    """own_conditions: of each class."""
    head = ["answers of class", *matrix_columns(matrix.conditions)]
    rows = []
    for name, values in matrix.nll.items():
        cells = [
            Cell(text=number_text(value, ".4f"), shade=shade, outlined=condition == own_conditions.get(name))
            for condition, value, shade in zip(matrix.conditions, values, row_shades(values), strict=True)
        ]
        rows.append([Cell(text=name), *cells, Cell(text=learnt_text(matrix.learnt.get(name)))])
    return Section(heading=heading, paragraphs=[_HOW_TO_READ], head=head, rows=rows)
