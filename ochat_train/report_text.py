"""Reports as tables for people; the same numbers as `--json`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data_pipeline.dataset import Manifest
from data_pipeline.show import class_table


def prepare_text(manifest: Manifest, prepared_dir: Path, *, reused: bool) -> str:
    """Class table and ledger of a preparation."""
    ledger = manifest.ledger
    dropped = sum(ledger["dropped"].values())
    lines = [
        f"{prepared_dir}: {'unchanged, used as it is' if reused else 'prepared'}",
        class_table(manifest),
        f"read {ledger['read']:,} = kept {ledger['kept']:,} + dropped {dropped:,}; "
        f"truncated {ledger['truncated']:,}, unsupervised tail trimmed {ledger['tail_trimmed']:,}, "
        f"control strings kept as text {ledger['control_text_kept_plain']:,}",
    ]
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
    width = max(map(len, rows))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows.items())
