"""Results as text for a terminal."""

from __future__ import annotations

from pathlib import Path

from data_pipeline.look.text import class_table, ledger_text
from data_pipeline.prepared.dataset import Manifest
from data_pipeline.text_rules import quoted, visible
from ochat_train.evaluation.results import ValidationResult
from ochat_train.report.tables import evaluation_table, number_text, shown_condition, subset_notes, table
from ochat_train.runs.metrics import EpochMeans

_ANSWER_CHARACTERS = 100


def prepare_text(manifest: Manifest, prepared_dir: Path, *, reused: bool) -> str:
    """Class table and ledger of a preparation."""
    state = "unchanged, reused" if reused else "prepared"
    lines = [
        f"{prepared_dir}: {state}",
        class_table(manifest.classes),
        ledger_text(manifest.ledger),
    ]
    splits = ", ".join(f"{name} {counts.conversations:,}" for name, counts in manifest.splits.items())
    lines.append(f"splits: {splits}; inference condition: {quoted(manifest.inference_condition)}")
    return "\n".join(lines)


def class_sums_text(epoch: EpochMeans) -> str:
    """What each class weighed and how well it was predicted, over an epoch of training."""
    head = ("class", "loss", "accuracy", "tokens", "supervised", "weight share", "effective tokens")
    rows = [
        (
            name,
            number_text(row.loss, ".4f"),
            number_text(row.accuracy, ".1%"),
            f"{row.tokens:,}",
            f"{row.supervised_tokens:,}",
            number_text(row.weight_share, ".1%"),
            number_text(row.effective_tokens, ",.0f"),
        )
        for name, row in epoch.means.classes.items()
    ]
    part = "" if epoch.steps is None else f", steps {epoch.steps[0]} to {epoch.steps[1]}"
    return f"\ntraining, epoch {epoch.epoch}{part}\n{table(head, rows)}"


def validation_text(result: ValidationResult) -> str:
    """A validation: nll of each class under each condition, whether the condition was learnt, and samples."""
    parts = []
    if (validation := result.validation) is not None:
        head, rows = evaluation_table(validation.evaluation)
        loss = number_text(validation.evaluation.loss, ".4f")
        parts.append(f"\nvalidation after step {validation.step}: loss {loss}\n{table(head, rows)}")
        parts += [visible(note, kept="") for note in subset_notes(validation.evaluation)]
    for sample in result.samples:
        parts.append(f"sample: {_one_line(sample.prompt)}")
        for answer in sample.answers:
            more = "" if answer.finished else " ..."
            parts.append(f"  {_one_line(shown_condition(answer.condition))}: {_one_line(answer.text)}{more}")
    return "\n".join(parts)


def _one_line(text: str) -> str:
    line = visible(" ".join(text.split()), kept="")
    return line if len(line) <= _ANSWER_CHARACTERS else line[: _ANSWER_CHARACTERS - 3] + "..."
