"""The colours of condition matrices: one scale for all of them, so that the same colour is the same difference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ochat_train.evaluation.verdict import SMALLEST_PER_TOKEN


@dataclass(frozen=True, kw_only=True)
class HeatStep:
    """A colour of the scale. least: nats per token above the lowest value of a row, from which it is used. shade: 0 to
    1, none to full colour. label: for the legend.
    """

    least: float
    shade: float
    label: str


HEAT_STEPS = (
    HeatStep(least=0.0, shade=0.0, label=f"below {SMALLEST_PER_TOKEN:g}"),
    HeatStep(least=SMALLEST_PER_TOKEN, shade=0.12, label=f"{SMALLEST_PER_TOKEN:g} to 0.02"),
    HeatStep(least=0.02, shade=0.24, label="0.02 to 0.1"),
    HeatStep(least=0.1, shade=0.4, label="0.1 to 0.5"),
    HeatStep(least=0.5, shade=0.58, label="0.5 or more"),
)
HEAT_MEANING = "nats per token above the lowest of its row"


def row_shades(values: Sequence[float | None]) -> list[float]:
    """Shades of one row by how far each value is above the lowest: rows differ in level, and only columns are
    compared. A value that is not known has none.
    """
    low = min((value for value in values if value is not None), default=0.0)
    return [0.0 if value is None else _shade(value - low) for value in values]


def _shade(excess: float) -> float:
    return next(step.shade for step in reversed(HEAT_STEPS) if excess >= step.least)
