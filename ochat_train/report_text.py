"""Reports as tables for people; the same numbers as `--json`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_pipeline.look.text import aligned, class_table, ledger_text
from data_pipeline.prepared.dataset import Manifest
from data_pipeline.text_rules import quoted, visible

if TYPE_CHECKING:  # torch takes seconds to import, and most reports do without
    from ochat_train.evaluation.validation import ValidationResult

_ANSWER_CHARACTERS = 100


def prepare_text(manifest: Manifest, prepared_dir: Path, *, reused: bool) -> str:
    """Class table and ledger of a preparation."""
    lines = [
        f"{prepared_dir}: {'unchanged, used as it is' if reused else 'prepared'}",
        class_table(manifest.classes),
        ledger_text(manifest.ledger),
    ]
    splits = ", ".join(f"{name} {counts['conversations']:,}" for name, counts in manifest.splits.items())
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


def _one_line(text: str) -> str:
    line = visible(" ".join(text.split()), kept="")
    return line if len(line) <= _ANSWER_CHARACTERS else line[: _ANSWER_CHARACTERS - 3] + "..."


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows under a head, columns aligned. Cells may hold names of users' data: what is not visible is escaped."""
    return "\n".join(aligned([[visible(cell, kept="") for cell in line] for line in (head, *rows)]))
