"""TensorBoard files in the run folder."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

import yaml

from data_pipeline.prepared.dataset import PreparedClass
from data_pipeline.text_rules import markdown_text, visible
from ochat_train.evaluation.condition_matrix import ConditionMatrix
from ochat_train.evaluation.results import Sample, ValidationResult
from ochat_train.report.tables import learnt_text, markdown_table, matrix_columns, number_text, shown_condition
from ochat_train.runs.metrics import StepMetrics
from ochat_train.tracking.kind import TrackerKind
from ochat_train.tracking.protocol import RunFacts
from ochat_train.tracking.scalars import benchmark_scalars, step_scalars, validation_scalars

FOLDER = "tensorboard"
# Charts with a curve for each class, under CUSTOM SCALARS; the names of curves are regular expressions.
_LAYOUT = {
    "training": {
        name: ["Multiline", [rf"classes/.*/{name}$"]]
        for name in ("loss", "accuracy", "weight_share", "effective_tokens")
    },
    "validation": {
        "nll": ["Multiline", [r"validation/classes/.*/nll$"]],
        "accuracy": ["Multiline", [r"validation/classes/.*/accuracy$"]],
        "learnt: margin over the nearest other condition": ["Multiline", [r"validation/learnt/.*/margin$"]],
    },
}


class TensorBoardTracker:
    """Writes event files into OUTPUT_DIR/tensorboard; steps that a resumed run repeats replace the earlier ones."""

    name = "TensorBoard"

    def start(self, facts: RunFacts) -> str:
        """See Tracker."""
        from torch.utils.tensorboard import SummaryWriter

        folder = facts.output_dir / FOLDER
        self._conditions = {row.name: row.condition for row in facts.classes}
        purge_step = facts.first_step + 1  # hides later steps of an earlier part of the run
        _silence_writing_threads()
        self._writer = SummaryWriter(str(folder), purge_step=purge_step)
        texts = {
            "recipe": _code(yaml.safe_dump(dict(facts.recipe), sort_keys=False, allow_unicode=True)),
            "classes": _table(
                ["", *(row.name for row in facts.classes)],
                [
                    [f.name, *(getattr(row, f.name) for row in facts.classes)]
                    for f in fields(PreparedClass)
                    if f.name != "name"
                ],
            ),
            "ledger": _code(json.dumps(asdict(facts.ledger), indent=1, ensure_ascii=False)),
            "hardware": _table(["", ""], facts.hardware.items()),
            "versions": _table(["", ""], facts.versions.items()),
        }
        for name, text in texts.items():
            self._writer.add_text(f"run/{name}", text, facts.first_step)
        self._writer.add_custom_scalars(_LAYOUT)
        self._writer.flush()
        return f"tensorboard --logdir {folder}"

    def log_step(self, metrics: StepMetrics) -> None:
        """See Tracker."""
        self._add(step_scalars(metrics), metrics.step)

    def log_validation(self, result: ValidationResult) -> None:
        """See Tracker."""
        if (validation := result.validation) is not None:
            self._add(validation_scalars(validation), validation.step)
            if validation.evaluation.matrix.nll:
                self._add_matrix(validation.evaluation.matrix, validation.step)
        for number, sample in enumerate(result.samples, start=1):
            self._writer.add_text(f"samples/{number}", _sample(sample), sample.step)
        if (benchmarks := result.benchmarks) is not None:
            self._add(benchmark_scalars(benchmarks), benchmarks.step)
        self._writer.flush()

    def close(self, *, done: bool) -> None:
        """See Tracker."""
        self._writer.close()

    def abandon(self) -> None:
        """See Tracker; its threads end with the process."""

    def _add(self, scalars: Mapping[str, float], step: int) -> None:
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)

    def _add_matrix(self, matrix: ConditionMatrix, step: int) -> None:
        from ochat_train.report.pictures import heat_map

        picture = heat_map(matrix.nll, matrix.conditions, self._conditions)
        self._writer.add_image("validation/condition matrix", picture, step, dataformats="HWC")
        head = ["class", *matrix_columns(matrix.conditions)]
        rows = [
            [name, *(number_text(value, ".4f") for value in row), learnt_text(matrix.learnt.get(name))]
            for name, row in matrix.nll.items()
        ]
        text = _table(head, rows)
        self._writer.add_text("validation/condition matrix", text, step)


TENSORBOARD = TrackerKind(
    key="tensorboard",
    package="tensorboard",
    extra="tracking",
    is_wanted=lambda settings: settings.tensorboard,
    make=lambda settings: TensorBoardTracker(),
)


def _silence_writing_threads() -> None:
    """Print no traceback of TensorBoard's own thread when it cannot write (a full disk).

    It raises the same error again at the next call, where delivery.py reports it in one line.
    """
    previous = threading.excepthook

    def report(failure: threading.ExceptHookArgs) -> None:
        if not type(failure.thread).__module__.startswith("tensorboard."):
            previous(failure)

    threading.excepthook = report


def _sample(sample: Sample) -> str:
    parts = ["**prompt**", _code(sample.prompt)]
    for answer in sample.answers:
        parts += [f"**{markdown_text(shown_condition(answer.condition))}**", _code(answer.text)]
        parts += [] if answer.finished else ["(cut off)"]
    return "\n\n".join(parts)


def _code(text: str) -> str:
    """Any text as an indented Markdown block, which shows it unchanged; nothing in it can end the block."""
    return "\n".join(f"    {line}" for line in (visible(text) or " ").split("\n"))


def _table(head: Sequence[str], rows: Iterable[Iterable[Any]]) -> str:
    return markdown_table([_cell(cell) for cell in head], [[_cell(cell) for cell in row] for row in rows])


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else markdown_text(str(value))
