"""From loss sums to the numbers a person reads: metrics.jsonl, the progress line, TensorBoard and Weights & Biases."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ochat_train.durable import replace_text
from ochat_train.recipe import Recipe

METRICS_FILE = "metrics.jsonl"
SLOW_DATA_RATIO = 0.01  # a step that waits longer for data says so


@dataclass(frozen=True, kw_only=True)
class StepSums:
    """Sums of one optimizer step over all ranks and micro-batches.

    per_class: float64[C, 4], weighted nll, weight, weighted correct, supervised tokens. num_tokens: without padding.
    grad_norm: 2-norm of the gradient over all parameters, before clipping; not finite where the update was left out.
    bad_packs: numbers (from 0) of this rank's micro-batches whose loss is not finite.
    stop: whether any rank was asked to stop.
    """

    per_class: torch.Tensor
    num_tokens: int
    grad_norm: float
    bad_packs: list[int]
    stop: bool


def step_metrics(sums: StepSums, class_names: Sequence[str]) -> dict[str, Any]:
    """Means of one step. `loss` is the weighted mean nll in nats per token, as `accuracy` is a weighted share.

    A class that has no token in this step has null for loss and accuracy, as has a loss that is not finite.
    """
    nll, weight, correct, supervised = sums.per_class.sum(dim=0).tolist()
    classes = {}
    for name, (class_nll, class_weight, class_correct, class_supervised) in zip(
        class_names, sums.per_class.tolist(), strict=True
    ):
        classes[name] = {
            "loss": _ratio(class_nll, class_weight),
            "accuracy": _ratio(class_correct, class_weight),
            "weight_share": _ratio(class_weight, weight),
            "supervised_tokens": int(class_supervised),
        }
    return {
        "loss": _ratio(nll, weight),
        "accuracy": _ratio(correct, weight),
        "weight": weight if math.isfinite(weight) else None,
        "tokens": sums.num_tokens,
        "supervised_tokens": int(supervised),
        "classes": classes,
    }


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole and math.isfinite(part) and math.isfinite(whole) else None


class MetricsWriter:
    """Writes every logged step; the file is only ever appended to, and a resumed run goes on after its last step."""

    def __init__(self, output_dir: Path, recipe: Recipe, *, first_step: int) -> None:
        path = output_dir / METRICS_FILE
        kept = [line for line in _whole_lines(path) if json.loads(line)["step"] <= first_step] if first_step else []
        replace_text(path, "".join(kept))
        self._file = path.open("a", encoding="utf-8")
        self._tensorboard: Any = None
        self._wandb: Any = None
        if recipe.tracking.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._tensorboard = SummaryWriter(str(output_dir / "tensorboard"))  # type: ignore[no-untyped-call]
        if recipe.tracking.wandb:
            import wandb

            config = recipe.model_dump(mode="json", by_alias=True)
            self._wandb = wandb.init(project="ochat-train", name=recipe.name, dir=str(output_dir), config=config)

    def write(self, metrics: dict[str, Any]) -> None:
        """Write the metrics of one step to all places."""
        self._file.write(json.dumps(metrics, allow_nan=False) + "\n")
        self._file.flush()
        flat = dict(_flatten(metrics))
        if self._tensorboard is not None:
            for key, value in flat.items():
                self._tensorboard.add_scalar(key, value, metrics["step"])
        if self._wandb is not None:
            self._wandb.log(flat, step=metrics["step"])

    def close(self) -> None:
        """Finish all files."""
        self._file.close()
        if self._tensorboard is not None:
            self._tensorboard.close()
        if self._wandb is not None:
            self._wandb.finish()


def _whole_lines(path: Path) -> list[str]:
    """Lines of a file; a last line without its end was being written when the process was killed, and is left out."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []
    return [line for line in lines if line.endswith("\n")]


def _flatten(metrics: dict[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    flat = []
    for key, value in metrics.items():
        if isinstance(value, dict):
            flat += _flatten(value, f"{prefix}{key}/")
        elif value is not None:
            flat.append((prefix + key, float(value)))
    return flat


class ProgressLine:
    """One bar on a terminal; without a terminal a plain line now and then, so that log files stay readable."""

    LINE_EVERY_SECONDS = 10.0

    def __init__(self, *, first_step: int, num_steps: int, shown: bool) -> None:
        self._terminal = sys.stderr.isatty()
        self._shown = shown
        self._num_steps = num_steps
        self._last_line = -math.inf
        self._start = time.monotonic()
        self._first_step = first_step
        self._bar = tqdm(total=num_steps, initial=first_step, unit="step", desc="train", disable=not (shown and self._terminal))

    def update(self, metrics: dict[str, Any]) -> None:
        """Show a finished step."""
        speed = f"{metrics['tokens_per_second']:,.0f} tok/s"
        if metrics["mfu"] is not None:
            speed += f", MFU {metrics['mfu']:.1%}"
        if metrics["memory_gib"] is not None:
            speed += f", {metrics['memory_gib']:.0f} GiB"
        if metrics["data_wait_ratio"] > SLOW_DATA_RATIO:
            speed += f", {metrics['data_wait_ratio']:.0%} waiting for data"
        loss = "not finite" if metrics["loss"] is None else f"{metrics['loss']:.4f}"
        self._bar.set_postfix_str(f"loss {loss}, {speed}", refresh=False)
        self._bar.update(metrics["step"] - self._bar.n)
        now = time.monotonic()
        is_last = metrics["step"] == self._num_steps
        if self._shown and not self._terminal and (is_last or now - self._last_line >= self.LINE_EVERY_SECONDS):
            done = metrics["step"] - self._first_step
            left = (now - self._start) / done * (self._num_steps - metrics["step"])
            print(
                f"step {metrics['step']}/{self._num_steps}  epoch {metrics['epoch']}  loss {loss}  "
                f"{speed}  {_duration(left)} left",
                file=sys.stderr,
                flush=True,
            )
            self._last_line = now

    def close(self) -> None:
        """Leave the bar as it is."""
        self._bar.close()


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
