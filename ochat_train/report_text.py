"""Reports as tables for people; the same numbers as `--json`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_pipeline.look.text import aligned, class_table, ledger_text
from data_pipeline.prepared.dataset import ClassRow, Manifest
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


def plan_text(report: dict[str, Any]) -> str:
    """The plan for people: classes, `name  value` lines, memory by part, and the settings that were considered."""
    parts = []
    if report["prepared"]:
        parts.append(class_table([ClassRow(**row) for row in report["classes"]]))
    else:
        parts.append("Nothing is prepared yet: steps, learning rate and time are known after `ochat prepare RECIPE`.")
    rows = {
        "model": _parameters(report["num_parameters"]),
        **(_plan_steps(report) if report["prepared"] else {}),
        "tokens per step": f"{report['tokens_per_step']:,} in {_counted(report['bins_per_step'], 'pack')}",
        "packs per GPU": f"{report['packs_per_gpu']} a step on {report['num_gpus']} GPU(s), "
        f"{report['empty_packs_per_step']} empty",
        "loss denominator": report["loss_denominator"],
        "setting": f"ZeRO-{report['zero_stage']}, activation_checkpointing {report['activation_checkpointing']}, "
        f"{report['packs_per_micro_batch']} pack(s) per micro-batch",
        **(_plan_time(report) if report["prepared"] else {}),
    }
    width = max(map(len, rows))
    parts.append("\n".join(f"{name:<{width}}  {value}" for name, value in rows.items()))
    memory = [(name, f"{value:.2f}") for name, value in report["memory_gib_per_gpu"].items()]
    title = f"memory of a GPU (computed), of {report['gpu_memory_gib']:g} GiB ({report['gpu']})"
    parts.append(table((title, "GiB"), memory))
    settings = [
        (
            f"ZeRO-{row['zero_stage']}",
            row["activation_checkpointing"],
            str(row["packs_per_micro_batch"]),
            f"{row['memory_gib']:.1f}",
            "yes" if row["fits"] else "no",
            f"{row['relative_seconds']:.2f}",
            ("<- this one" if row["fits"] else "<- the least") if row["chosen"] else "",
        )
        for row in report["settings"]
    ]
    head = ("settings considered", "activation_checkpointing", "packs", "GiB", "fits", "relative time", "")
    parts.append(table(head, settings))
    if not report["fits"]:
        parts.append(report["problem"])
    return "\n\n".join(parts)


def _plan_steps(report: dict[str, Any]) -> dict[str, str]:
    return {
        "conversations per epoch": f"{report['conversations_per_epoch']:,} of {report['tokens_per_epoch']:,} tokens",
        "steps": f"{report['num_steps']:,} ({', '.join(map(str, report['steps_per_epoch']))} per epoch)",
        "packing efficiency": f"{report['packing_efficiency']:.2%}",
        "learning rate": f"{report['learning_rate']:.5g}",
    }


def _plan_time(report: dict[str, Any]) -> dict[str, str]:
    if not report["fits"]:
        return {"time": "none: it does not fit"}
    if report["hours"] is None:
        return {"time": f"not known: {report['mfu_basis']}"}
    more = "start, checkpoints, answers to prompts, traffic between hosts"
    if report["num_validations"]:
        more += f"; {_counted(report['num_validations'], 'validation')}"
    if report["validation_time_ratio"]:
        more += f", about {report['validation_time_ratio']:.1%} more"
    return {
        "time (estimate)": f"{_duration(report['hours'])} on {report['num_gpus']} {report['gpu']}, "
        f"{_hours(report['gpu_hours'])} GPU-hours; {report['seconds_per_step']:.3g} s a step, "
        f"{report['tokens_per_second']:,.0f} tokens/s",
        "  if the GPUs reach": f"{report['mfu_assumed']:.1%} of {report['peak_tflops']:,.0f} TFLOP/s: "
        f"{report['mfu_basis']}",
        "  not in it": more,
    }


def _parameters(count: int) -> str:
    return f"{count / 1e9:.3g} billion parameters" if count >= 1e9 else f"{count / 1e6:.3g} million parameters"


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _hours(hours: float) -> str:
    return f"{hours:,.1f}" if hours >= 1 else f"{hours:.2g}"


def _duration(hours: float) -> str:
    if hours >= 1:
        return f"{_hours(hours)} hours"
    return f"{hours * 60:.0f} min" if hours * 60 >= 1 else "less than a minute"


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
