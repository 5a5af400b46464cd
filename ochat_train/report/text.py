"""Results as text for a terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data_pipeline.look.text import class_table, ledger_text
from data_pipeline.prepared.dataset import Manifest
from data_pipeline.text_rules import quoted, visible
from ochat_train.evaluation.validation import ValidationResult
from ochat_train.report.tables import number_text, shown_condition, table, validation_table

_ANSWER_CHARACTERS = 100


def prepare_text(manifest: Manifest, prepared_dir: Path, *, reused: bool) -> str:
    """Class table and ledger of a preparation."""
    lines = [
        f"{prepared_dir}: {'unchanged, used as it is' if reused else 'prepared'}",
        class_table(manifest.classes),
        ledger_text(manifest.ledger),
    ]
    splits = ", ".join(f"{name} {counts.conversations:,}" for name, counts in manifest.splits.items())
    lines.append(f"splits: {splits}; inference condition: {quoted(manifest.inference_condition)}")
    return "\n".join(lines)


def class_sums_text(metrics: dict[str, Any]) -> str:
    """What each class weighed and how well it was predicted, over an epoch of training (EpochSums.metrics)."""
    head = ("class", "loss", "accuracy", "tokens", "supervised", "weight share", "effective tokens")
    rows = [
        (
            name,
            number_text(row["loss"], ".4f"),
            number_text(row["accuracy"], ".1%"),
            f"{row['tokens']:,}",
            f"{row['supervised_tokens']:,}",
            number_text(row["weight_share"], ".1%"),
            number_text(row["effective_tokens"], ",.0f"),
        )
        for name, row in metrics["classes"].items()
    ]
    part = "" if metrics["steps"] is None else ", steps {} to {}".format(*metrics["steps"])
    return f"\ntraining, epoch {metrics['epoch']}{part}\n{table(head, rows)}"


def validation_text(result: ValidationResult) -> str:
    """A validation: nll of each class under each condition, whether the condition was learnt, and samples."""
    parts = []
    if (line := result.line) is not None:
        head, rows = validation_table(line)
        parts.append(
            f"\nvalidation after step {line['step']}: loss {number_text(line['loss'], '.4f')}\n{table(head, rows)}"
        )
    for sample in result.samples:
        parts.append(f"sample: {_one_line(sample['prompt'])}")
        parts += [
            f"  {_one_line(shown_condition(answer['condition']))}: {_one_line(answer['text'])}"
            f"{'' if answer['finished'] else ' ...'}"
            for answer in sample["answers"]
        ]
    return "\n".join(parts)


def _one_line(text: str) -> str:
    line = visible(" ".join(text.split()), kept="")
    return line if len(line) <= _ANSWER_CHARACTERS else line[: _ANSWER_CHARACTERS - 3] + "..."
