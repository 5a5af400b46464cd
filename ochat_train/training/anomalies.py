"""Steps with a loss or gradient that is not finite, or with a gradient that is far too large.

A step that is not finite changes nothing; it is counted, and its conversations are named in OUTPUT_DIR/anomalies.jsonl.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence
from typing import Any

from data_pipeline.prepared.dataset import PreparedSplit
from data_pipeline.text_rules import some_names
from ochat_train.checkpoint.state import Progress
from ochat_train.distributed.ranks import Ranks, gathered
from ochat_train.system.messages import print_message
from ochat_train.training.outputs import MetricsWriter
from ochat_train.training.step import Step, StepSums

SPIKE_FACTOR = 10.0
_HISTORY = 64  # gradient norms that the median is taken of
_FEWEST = 8  # a median of fewer says nothing


def progressed(progress: Progress, grad_norm: float) -> tuple[Progress, str | None]:
    """The progress after one more step, and what was wrong with the step: `nonfinite`, `spike` or None.

    grad_norm: before clipping; not finite where the update was left out. Such a norm never joins the history that
    spikes are measured against. A spike joins it as the limit: a single spike hardly moves the median, and a level that
    stays soon stops being a spike.
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
    writer: MetricsWriter | None,
    ranks: Ranks,
    *,
    progress: Progress,
    step: Step,
    sums: StepSums,
    split: PreparedSplit,
) -> None:
    """Append what every rank worked on in this step to anomalies.jsonl, and print a line. All ranks call it.

    kind: `nonfinite` or `spike`. writer: of rank 0, None on the others. progress: after the step.
    """
    own = {
        "rank": ranks.rank,
        "packs": [
            {
                "loss_is_finite": number not in sums.bad_micro_batches,
                "conversations": [split.conversation_id(int(row)) for row in rows],
            }
            for number, packs in enumerate(step.packs)
            for rows in packs
        ],
    }
    of_ranks = gathered(ranks, own)
    if writer is None:
        return
    entry = {
        "event": kind,
        "step": progress.step,
        "grad_norm": sums.grad_norm if math.isfinite(sums.grad_norm) else None,
        "ranks": of_ranks,
    }
    writer.write_anomaly(entry)
    text = _spike_text(sums) if kind == "spike" else _nonfinite_text(of_ranks, progress)
    print_message(f"step {progress.step}: {text}; see {writer.anomalies_file} for its conversations")


def _spike_text(sums: StepSums) -> str:
    return f"gradient norm {sums.grad_norm:.4g}, {SPIKE_FACTOR:g} times the median of the last steps"


def _nonfinite_text(of_ranks: Sequence[dict[str, Any]], progress: Progress) -> str:
    bad = [
        f"rank {rank['rank']}, pack {number} ({some_names(pack['conversations'])})"
        for rank in of_ranks
        for number, pack in enumerate(rank["packs"])
        if not pack["loss_is_finite"]
    ]
    what = f"the loss is not finite on {'; '.join(bad)}" if bad else "all losses are finite, but the gradient is not"
    counts = f"{progress.nonfinite_in_a_row} in a row, {progress.nonfinite_steps} in all"
    return f"{what}; the model was not updated ({counts})"
