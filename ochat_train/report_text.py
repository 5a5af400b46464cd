"""Reports as tables for people; the same numbers as `--json`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_pipeline.dataset import ClassRow, Manifest
from data_pipeline.show import class_table

if TYPE_CHECKING:  # torch takes seconds to import, and most reports do without
    from ochat_train.validation import ValidationResult

_ANSWER_CHARACTERS = 100


def prepare_text(manifest: Manifest, prepared_dir: Path, *, reused: bool) -> str:
    """Class table and ledger of a preparation."""
    ledger = manifest.ledger
    dropped = sum(ledger["dropped"].values())
    lines = [
        f"{prepared_dir}: {'unchanged, used as it is' if reused else 'prepared'}",
        class_table(manifest.classes),
        f"read {ledger['read']:,} = kept {ledger['kept']:,} + dropped {dropped:,}; "
        f"truncated {ledger['truncated']:,}, unsupervised tail trimmed {ledger['tail_trimmed']:,}, "
        f"control strings kept as text {ledger['control_text_kept_plain']:,}, "
        f"condition left out {ledger['condition_left_out']:,}",
    ]
    if not_recovered := ledger.get("text_not_recovered", 0):  # a key that older prepared datasets lack
        lines.append(f"held out, but not under other conditions, text not recovered from tokens: {not_recovered:,}")
        lines += [f"    {example}" for example in ledger["examples"]["text_not_recovered"]]
    for reason, count in ledger["dropped"].items():
        lines.append(f"  dropped, {reason}: {count:,}")
        lines += [f"    {example}" for example in ledger["examples"].get(reason, [])]
    splits = ", ".join(f"{name} {counts['conversations']:,}" for name, counts in manifest.splits.items())
    lines.append(f"splits: {splits}; inference condition: {manifest.inference_condition!r}")
    return "\n".join(lines)


def plan_text(report: dict[str, Any], *, num_gpus: int) -> str:
    """The plan as `name  value` lines."""
    memory = report["memory_gib_per_gpu"]
    rows = {
        "steps": f"{report['num_steps']:,} ({', '.join(map(str, report['steps_per_epoch']))} per epoch)",
        "tokens per step": f"{report['tokens_per_step']:,} in {report['bins_per_step']} packs",
        "packs per GPU": f"{report['packs_per_gpu']} a step on {num_gpus} GPU(s), {report['empty_packs_per_step']} empty",
        "packing efficiency": f"{report['packing_efficiency']:.2%}",
        "conversations per epoch": f"{report['conversations_per_epoch']:,}",
        "learning rate": f"{report['learning_rate']:.5g}",
        "loss denominator": report["loss_denominator"],
        "setting": f"ZeRO-{report['zero_stage']}, activation_checkpointing {report['activation_checkpointing']}, "
        f"{report['packs_per_micro_batch']} pack(s) per micro-batch",
        "memory per GPU (computed)": ", ".join(f"{name} {value} GiB" for name, value in memory.items())
        + ("" if report["fits"] else "; more than a GPU has"),
    }
    classes = [ClassRow(**row) for row in report["classes"]]
    width = max(map(len, rows))
    return "\n".join([class_table(classes), "", *(f"{name:<{width}}  {value}" for name, value in rows.items())])


def class_sums_text(metrics: dict[str, Any]) -> str:
    """What each class weighed and how well it was predicted, over an epoch of training."""
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
    return f"\ntraining, epoch {metrics['epoch']}\n{table(head, rows)}"


def validation_text(result: ValidationResult) -> str:
    """A validation: nll of each class under each condition, whether the condition was learnt, and samples."""
    parts = []
    if (line := result.line) is not None:
        conditions = line["conditions"]
        head = ("class", "nll", "accuracy", *(f"under {shown_condition(condition)}" for condition in conditions), "learnt")
        rows = [
            (
                name,
                number_text(row["nll"], ".4f"),
                number_text(row["accuracy"], ".1%"),
                *(number_text(value, ".4f") for value in line["matrix"].get(name, [None] * len(conditions))),
                learnt_text(line["learnt"].get(name)),
            )
            for name, row in line["classes"].items()
        ]
        parts.append(f"\nvalidation after step {line['step']}: loss {number_text(line['loss'], '.4f')}\n{table(head, rows)}")
    for sample in result.samples:
        parts.append(f"sample: {_one_line(sample['prompt'])}")
        parts += [
            f"  {shown_condition(answer['condition'])}: {_one_line(answer['text'])}{'' if answer['finished'] else ' ...'}"
            for answer in sample["answers"]
        ]
    return "\n".join(parts)


def learnt_text(learnt: dict[str, Any] | None) -> str:
    """Whether a class's condition was learnt, in words: the margin over the nearest other condition, in nats per token."""
    if learnt is None:
        return "not measured"
    interval = f"{learnt['margin']:.4f} [{learnt['low']:.4f}, {learnt['high']:.4f}] nats/token"
    return f"{'yes' if learnt['learnt'] else 'no'}: {interval} over {shown_condition(learnt['nearest'])}"


def shown_condition(condition: str) -> str:
    """A condition as it is named to people."""
    return condition or "no condition"


def number_text(value: float | None, form: str) -> str:
    """A number, or a dash where there is none."""
    return "-" if value is None else format(value, form)


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _ANSWER_CHARACTERS else line[: _ANSWER_CHARACTERS - 3] + "..."


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows under a head, columns aligned."""
    widths = [max(len(line[column]) for line in (head, *rows)) for column in range(len(head))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in (head, *rows))
    return "\n".join(lines)
