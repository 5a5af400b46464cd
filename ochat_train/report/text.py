"""Results as text for a terminal."""

from __future__ import annotations

from pathlib import Path

from data_pipeline.look.text import class_table, ledger_text, table
from data_pipeline.prepared.dataset import Manifest
from data_pipeline.text_rules import quoted, visible_line
from ochat_train.evaluation.results import BenchmarkScores, ValidationResult
from ochat_train.evaluation.schedule import MOST_BENCHMARK_TIME_RATIO
from ochat_train.report.tables import evaluation_table, number_text, shown_condition, subset_notes
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
        parts += [visible_line(note) for note in subset_notes(validation.evaluation)]
    for sample in result.samples:
        parts.append(f"sample: {_one_line(sample.prompt)}")
        for answer in sample.answers:
            more = "" if answer.finished else " ..."
            parts.append(f"  {_one_line(shown_condition(answer.condition))}: {_one_line(answer.text)}{more}")
    if result.benchmarks is not None:
        parts.append(benchmarks_text(result.benchmarks))
    return "\n".join(parts)


BENCHMARK_HEAD = ("benchmark", "condition", "score", "95 % interval", "answered", "cut off", "questions")


def benchmark_rows(benchmarks: BenchmarkScores) -> list[tuple[str, ...]]:
    """A row under BENCHMARK_HEAD for each benchmark and condition."""
    return [
        (
            score.suite,
            shown_condition(score.condition),
            f"{score.score:.1%}",
            f"{score.low:.1%} to {score.high:.1%}",
            f"{score.answered:.1%}",
            f"{score.cut:.1%}",
            f"{score.questions:,}",
        )
        for score in benchmarks.scores
    ]


def benchmarks_text(benchmarks: BenchmarkScores) -> str:
    """The benchmarks of a step as a table, and what share of the time they take."""
    share = f"{benchmarks.benchmark_time_ratio:.1%} of the time so far"
    if benchmarks.benchmark_time_ratio > MOST_BENCHMARK_TIME_RATIO:
        share += (
            f", more than {MOST_BENCHMARK_TIME_RATIO:.0%}: lower `limit` or `answer_tokens` of validation.benchmarks"
        )
    return f"\nbenchmarks after step {benchmarks.step} ({share})\n{table(BENCHMARK_HEAD, benchmark_rows(benchmarks))}"


def _one_line(text: str) -> str:
    line = visible_line(" ".join(text.split()))
    return line if len(line) <= _ANSWER_CHARACTERS else line[: _ANSWER_CHARACTERS - 3] + "..."
