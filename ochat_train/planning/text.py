"""What `ochat plan` prints."""

from __future__ import annotations

from typing import Any

from data_pipeline.look.text import class_table
from data_pipeline.prepared.dataset import ClassRow
from ochat_train.report.tables import table


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
