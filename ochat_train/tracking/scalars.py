"""Names under which trackers show the numbers of metrics.jsonl and validation.jsonl.

Trackers make a section of the part before the first slash: `train/loss`, `classes/expert/loss`, `validation/loss`,
`validation/classes/expert/nll`, `validation/matrix/expert/GPT3`, `validation/learnt/expert/margin`. A null has no
point.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from ochat_train.evaluation.results import Validation
from ochat_train.report.tables import shown_condition
from ochat_train.runs.metrics import StepMetrics


def step_scalars(metrics: StepMetrics) -> dict[str, float]:
    """All numbers of a line of metrics.jsonl but `step`, which is the x axis."""
    row = metrics.to_json()
    whole = {key: value for key, value in row.items() if key not in ("step", "classes")}
    return dict(_flatten({"train": whole, "classes": row["classes"]}))


def validation_scalars(validation: Validation) -> dict[str, float]:
    """All numbers of a line of validation.jsonl but `step`; `learnt` is 1 if the condition was learnt, else 0."""
    names = _curve_names(validation.evaluation.matrix.conditions)
    matrix = {name: dict(zip(names, row, strict=True)) for name, row in validation.evaluation.matrix.nll.items()}
    shown = {key: value for key, value in validation.to_json().items() if key not in ("step", "conditions")}
    return dict(_flatten({"validation": {**shown, "matrix": matrix}}))


def _curve_names(conditions: Sequence[str]) -> list[str]:
    """Conditions as unique names of curves: the empty one gets a number if another condition has its name."""
    name = shown_condition("")
    numbered = itertools.chain([name], (f"{name} {number}" for number in itertools.count(2)))
    free = next(name for name in numbered if name not in conditions)
    return [condition or free for condition in conditions]


def _flatten(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    flat = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat += _flatten(value, f"{prefix}{key}/")
        elif isinstance(value, bool | int | float):
            flat.append((prefix + key, float(value)))
    return flat
