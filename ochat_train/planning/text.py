"""What `ochat plan` prints."""

from __future__ import annotations

from data_pipeline.look.text import class_table, table
from ochat_train.optimizer.size import STATE_SIZES
from ochat_train.planning.results import PlannedRun, PlanReport
from ochat_train.report.cost import gpu_hours_text, hours_text

_NOT_PREPARED = "Nothing is prepared yet: steps, learning rate and time are known after `ochat prepare RECIPE`."
_SETTINGS_HEAD = ("settings considered", "activation_checkpointing", "packs", "GiB", "fits", "relative time", "")


def plan_text(report: PlanReport) -> str:
    """The plan for people: classes, `name  value` lines, memory by part, and the settings that were considered."""
    parts = [
        class_table(report.classes) if report.run else _NOT_PREPARED,
        _values_text(report),
        _memory_text(report),
        _settings_text(report),
    ]
    if report.problem is not None:
        parts.append(report.problem)
    return "\n\n".join(parts)


def _values_text(report: PlanReport) -> str:
    rows = {"model": _parameters(report.num_parameters)}
    if report.adapter is not None:
        trained = _parameters(report.num_trained_parameters)
        rows["model"] += f"; {report.adapter} of rank {report.adapter_rank} trains {trained}"
    if report.run:
        rows |= _run_rows(report.run)
    rows |= {
        "tokens per step": f"{report.tokens_per_step:,} in {_counted(report.bins_per_step, 'pack')}",
        "packs per GPU": f"{report.packs_per_gpu} a step on {report.num_gpus} GPU(s), "
        f"{report.empty_packs_per_step} empty",
        "loss denominator": report.loss_denominator,
        "setting": f"ZeRO-{report.zero_stage}, activation_checkpointing {report.activation_checkpointing}, "
        f"{report.packs_per_micro_batch} pack(s) per micro-batch",
        "optimizer states": f"{report.optimizer_states}: {STATE_SIZES[report.optimizer_states].text}",
    }
    if report.run:
        rows |= _time_rows(report, report.run)
    width = max(map(len, rows))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows.items())


def _run_rows(run: PlannedRun) -> dict[str, str]:
    per_epoch = ", ".join(map(str, run.steps_per_epoch))
    is_worse = run.balanced_waiting_ratio < run.waiting_ratio  # than with the balanced plan, which may be the recipe's
    return {
        "conversations per epoch": f"{run.conversations_per_epoch:,} of {run.tokens_per_epoch:,} tokens",
        "steps": f"{run.num_steps:,} ({per_epoch} per epoch)",
        "packing efficiency": f"{run.packing_efficiency:.2%}",
        "waiting for the slowest GPU": f"{run.waiting_ratio:.1%} of a step"
        + (f", {run.balanced_waiting_ratio:.1%} with train.plan: balanced" if is_worse else ""),
        "learning rate": f"{run.learning_rate:.5g}"
        + (f" ({run.learning_rate_rule})" if run.learning_rate_rule else ""),
    }


def _time_rows(report: PlanReport, run: PlannedRun) -> dict[str, str]:
    if not report.fits:
        return {"time": "none: it does not fit"}
    if (time := report.time) is None:
        return {"time": f"not known: {report.mfu_basis}"}
    more = "start, checkpoints, answers to prompts, traffic between hosts"
    if run.num_validations:
        more += f"; {_counted(run.num_validations, 'validation')}"
    if run.validation_time_ratio:
        more += f", about {run.validation_time_ratio:.1%} more"
    return {
        "time (estimate)": f"{_duration(time.hours)} on {report.num_gpus} {report.gpu}, "
        f"{gpu_hours_text(time.gpu_hours, price=time.price_per_gpu_hour)}; {time.seconds_per_step:.3g} s a step, "
        f"{time.tokens_per_second:,.0f} tokens/s",
        "  if the GPUs reach": f"{report.mfu_assumed:.1%} of {report.peak_tflops:,.0f} TFLOP/s: {report.mfu_basis}",
        "  not in it": more,
    }


def _memory_text(report: PlanReport) -> str:
    title = f"memory of a GPU (computed), of {report.gpu_memory_gib:g} GiB ({report.gpu})"
    return table((title, "GiB"), [(name, f"{value:.2f}") for name, value in report.memory_gib_per_gpu.items()])


def _settings_text(report: PlanReport) -> str:
    rows = []
    for setting in report.settings:
        mark = ("<- this one" if setting.fits else "<- the least") if setting.chosen else ""
        rows.append(
            (
                f"ZeRO-{setting.zero_stage}",
                setting.activation_checkpointing,
                str(setting.packs_per_micro_batch),
                f"{setting.memory_gib:.1f}",
                "yes" if setting.fits else "no",
                f"{setting.relative_seconds:.2f}",
                mark,
            )
        )
    return table(_SETTINGS_HEAD, rows)


def _parameters(count: int) -> str:
    return f"{count / 1e9:.3g} billion parameters" if count >= 1e9 else f"{count / 1e6:.3g} million parameters"


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _duration(hours: float) -> str:
    if hours >= 1:
        return f"{hours_text(hours)} hours"
    return f"{hours * 60:.0f} min" if hours * 60 >= 1 else "less than a minute"
