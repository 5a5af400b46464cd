"""Steps that are not as they should be: a loss or gradient that is not finite, a gradient that is far too large.

A step that is not finite changes nothing; it is counted, and its conversations are named in OUTPUT_DIR/anomalies.jsonl.
"""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_pipeline.plan.plan import EpochPlan
from data_pipeline.prepared.dataset import PreparedSplit
from ochat_train.checkpoint.state import Progress
from ochat_train.distributed.ranks import Ranks
from ochat_train.system.say import say

ANOMALIES_FILE = "anomalies.jsonl"
SPIKE_FACTOR = 10.0
_HISTORY = 64  # gradient norms that the median is taken of
_FEWEST = 8  # with fewer there is no median to speak of


def progressed(progress: Progress, grad_norm: float) -> tuple[Progress, str | None]:
    """The progress after one more step, and what was wrong with the step: `nonfinite`, `spike` or None.

    grad_norm: before clipping; not finite where the update was left out. Such a step never joins the history that
    spikes are measured against. A spike joins it as the limit: one changes nothing, and a new level is a spike for a
    while only.
    """
    if not math.isfinite(grad_norm):
        after = dataclasses.replace(
            progress,
            step=progress.step + 1,
            nonfinite_steps=progress.nonfinite_steps + 1,
            nonfinite_in_a_row=progress.nonfinite_in_a_row + 1,
        )
        return after, "nonfinite"
    history = progress.grad_norms
    limit = SPIKE_FACTOR * statistics.median(history) if len(history) >= _FEWEST else math.inf
    is_spike = grad_norm > limit
    history = [*history, min(grad_norm, limit)][-_HISTORY:]
    after = dataclasses.replace(progress, step=progress.step + 1, nonfinite_in_a_row=0, grad_norms=tuple(history))
    return after, "spike" if is_spike else None


def record_anomaly(
    kind: str,
    output_dir: Path,
    ranks: Ranks,
    *,
    progress: Progress,
    grad_norm: float,
    split: PreparedSplit,
    plan: EpochPlan,
    packs: np.ndarray,
    packs_per_micro_batch: int,
    bad_micro_batches: list[int],
) -> None:
    """Write what every rank worked on in this step, and say so in a line. All ranks call it.

    packs: this rank's packs. bad_micro_batches: numbers (from 0) of this rank's micro-batches whose loss is not finite.
    """
    mine = {
        "rank": ranks.rank,
        "packs": [
            {
                "loss_is_finite": number // packs_per_micro_batch not in bad_micro_batches,
                "conversations": [split.conversation_id(int(row)) for row in plan.rows(int(pack))],
            }
            for number, pack in enumerate(packs)
        ],
    }
    of_ranks: list[Any] = [None] * ranks.num_ranks
    torch.distributed.all_gather_object(of_ranks, mine)
    if not ranks.is_main:
        return
    entry = {
        "event": kind,
        "step": progress.step,
        "grad_norm": grad_norm if math.isfinite(grad_norm) else None,
        "ranks": of_ranks,
    }
    with (output_dir / ANOMALIES_FILE).open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry, ensure_ascii=False) + "\n")
    where = f"see {output_dir / ANOMALIES_FILE} for its conversations"
    if kind == "spike":
        text = f"gradient norm {grad_norm:.4g}, {SPIKE_FACTOR:g} times the median of the last steps"
    else:
        guilty = [
            f"rank {entry['rank']}, pack {number} ({_few(pack['conversations'])})"
            for entry in of_ranks
            for number, pack in enumerate(entry["packs"])
            if not pack["loss_is_finite"]
        ]
        what = (
            f"the loss is not finite on {'; '.join(guilty)}"
            if guilty
            else "all losses are finite, but the gradient is not"
        )
        counts = f"{progress.nonfinite_in_a_row} in a row, {progress.nonfinite_steps} in all"
        text = f"{what}; the model was not updated ({counts})"
    say(f"step {progress.step}: {text}; {where}")


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
