"""Names under which trackers show the numbers of metrics.jsonl and validation.jsonl.

Trackers make a section of what stands before the first slash: `train/loss`, `classes/expert/loss`, `validation/loss`,
`validation/classes/expert/nll`, `validation/matrix/expert/GPT3`, `validation/learnt/expert/margin`. A null has no point.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ochat_train.report_text import shown_condition


def step_scalars(metrics: Mapping[str, Any]) -> dict[str, float]:
    """All numbers of a line of metrics.jsonl but `step`, which is the x axis."""
    whole = {key: value for key, value in metrics.items() if key not in ("step", "classes")}
    return dict(_flatten({"train": whole, "classes": metrics["classes"]}))


def validation_scalars(line: Mapping[str, Any]) -> dict[str, float]:
    """All numbers of a line of validation.jsonl but `step`; `learnt` is 1 where the condition was learnt, and 0 elsewhere."""
    matrix = {
        name: dict(zip(map(shown_condition, line["conditions"]), row, strict=True)) for name, row in line["matrix"].items()
    }
    shown = {key: value for key, value in line.items() if key not in ("step", "conditions")}
    return dict(_flatten({"validation": {**shown, "matrix": matrix}}))


def _flatten(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    flat = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat += _flatten(value, f"{prefix}{key}/")
        elif isinstance(value, bool | int | float):
            flat.append((prefix + key, float(value)))
    return flat
