"""Names under which trackers show the numbers of metrics.jsonl and validation.jsonl.

Trackers make a section of the part before the first slash: `train/loss`, `classes/expert/loss`, `validation/loss`,
`validation/classes/expert/nll`, `validation/matrix/expert/GPT3`, `validation/learnt/expert/margin`,
`benchmarks/gsm8k/GPT3/score`. A null has no point.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from data_pipeline.class_names import curve_names
from ochat_train.evaluation.results import BenchmarkScores, Validation
from ochat_train.report.tables import shown_condition
from ochat_train.runs.metrics import StepMetrics

_VERDICTS: Mapping[str | None, float] = {"yes": 1.0, "weak": 0.5, "no": 0.0}


def step_scalars(metrics: StepMetrics) -> dict[str, float]:
    """All numbers of a line of metrics.jsonl but `step`, which is the x axis."""
    row = metrics.to_json()
    whole = {key: value for key, value in row.items() if key not in ("step", "classes")}
    return dict(_flatten({"train": whole, "classes": _by_curve(row["classes"], curve_names(row["classes"]))}))


def validation_scalars(validation: Validation) -> dict[str, float]:
    """All numbers of a line of validation.jsonl but `step`; `learnt` is 1 for the verdict yes, 0.5 for weak, 0 for no,
    and has no point where the model had no condition to learn.
    """
    evaluation = validation.evaluation
    conditions = _condition_curves(evaluation.matrix.conditions)
    matrix = {name: dict(zip(conditions, row, strict=True)) for name, row in evaluation.matrix.nll.items()}
    shown = {key: value for key, value in validation.to_json().items() if key not in ("step", "conditions")}
    shown["matrix"] = matrix
    learnt = evaluation.matrix.learnt.items()
    shown["learnt"] = {name: {**entry.to_json(), "learnt": _VERDICTS.get(entry.verdict)} for name, entry in learnt}
    curves = curve_names([*evaluation.classes, *evaluation.matrix.nll, *evaluation.matrix.learnt])
    by_class = {key: _by_curve(shown[key], curves) for key in ("classes", "matrix", "learnt")}
    return dict(_flatten({"validation": {**shown, **by_class}}))


def benchmark_scalars(benchmarks: BenchmarkScores) -> dict[str, float]:
    """All numbers of a line of benchmarks.jsonl but `step`, by suite and condition."""
    conditions = list(dict.fromkeys(score.condition for score in benchmarks.scores))
    curves = dict(zip(conditions, _condition_curves(conditions), strict=True))
    suites: dict[str, Any] = {}
    for score in benchmarks.scores:
        numbers = {key: value for key, value in vars(score).items() if key not in ("suite", "condition")}
        suites.setdefault(score.suite, {})[curves[score.condition]] = numbers
    whole = {"seconds": benchmarks.seconds, "benchmark_time_ratio": benchmarks.benchmark_time_ratio}
    return dict(_flatten({"benchmarks": {**suites, **whole}}))


def _by_curve(classes: Mapping[str, Any], curves: Mapping[str, str]) -> dict[str, Any]:
    """What is known of each class, by the name of its curves."""
    return {curves[name]: value for name, value in classes.items()}


def _condition_curves(conditions: Sequence[str]) -> list[str]:
    """Conditions as unique names of curves: the empty one gets a number if another condition has its name."""
    name = shown_condition("")
    numbered = itertools.chain([name], (f"{name} {number}" for number in itertools.count(2)))
    free = next(name for name in numbered if name not in conditions)
    curves = curve_names([condition or free for condition in conditions])
    return [curves[condition or free] for condition in conditions]


def _flatten(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    flat = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat += _flatten(value, f"{prefix}{key}/")
        elif isinstance(value, bool | int | float):
            flat.append((prefix + key, float(value)))
    return flat
