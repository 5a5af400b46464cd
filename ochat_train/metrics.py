"""From loss sums to the numbers a person reads: metrics.jsonl, the progress line, TensorBoard and Weights & Biases."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import torch
from tqdm import tqdm

from ochat_train.durable import replace_text
from ochat_train.recipe import Recipe
from ochat_train.validation import ValidationResult

METRICS_FILE = "metrics.jsonl"
VALIDATION_FILE = "validation.jsonl"
SAMPLES_FILE = "samples.jsonl"
SLOW_DATA_RATIO = 0.01  # a step that waits longer for data says so


@dataclass(frozen=True, kw_only=True)
class StepSums:
    """Sums of one optimizer step over all ranks and micro-batches.

    per_class: float64[C, 5], as in loss.LossSums. num_tokens: without padding.
    grad_norm: 2-norm of the gradient over all parameters, before clipping; not finite where the update was left out.
    bad_packs: numbers (from 0) of this rank's micro-batches whose loss is not finite.
    stop: whether any rank was asked to stop.
    """

    per_class: torch.Tensor
    num_tokens: int
    grad_norm: float
    bad_packs: list[int]
    stop: bool


def step_metrics(per_class: torch.Tensor, class_names: Sequence[str], *, tokens_per_class: Sequence[int]) -> dict[str, Any]:
    """Means of one or several steps. `loss` is the weighted mean nll in nats per token, as `accuracy` is a weighted share.

    per_class: float64[C, 5], sums as in loss.LossSums. tokens_per_class: all tokens of each class, prompts included.
    effective_tokens: (sum w)^2 / sum w^2 over supervised tokens (Kish's effective sample size): how many tokens of one
    weight would give a mean as certain.
    A class that has no token has null for its means, as has a loss that is not finite.
    """
    total_weight = float(per_class[:, 1].sum())
    rows = zip(class_names, per_class, tokens_per_class, strict=True)
    classes = {name: _means(row, total_weight, num_tokens) for name, row, num_tokens in rows}
    whole = _means(per_class.sum(dim=0), total_weight, sum(tokens_per_class))
    del whole["weight_share"]
    return {**whole, "weight": total_weight if math.isfinite(total_weight) else None, "classes": classes}


def _means(sums: torch.Tensor, total_weight: float, num_tokens: int) -> dict[str, Any]:
    nll, weight, correct, supervised, squared = sums.tolist()
    return {
        "loss": _ratio(nll, weight),
        "accuracy": _ratio(correct, weight),
        "tokens": int(num_tokens),
        "supervised_tokens": int(supervised),
        "weight_share": _ratio(weight, total_weight),
        "effective_tokens": _ratio(weight * weight, squared),
    }


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole and math.isfinite(part) and math.isfinite(whole) else None


class EpochSums:
    """Adds up the steps of an epoch, for its summary."""

    def __init__(self, *, num_classes: int) -> None:
        self._empty = torch.zeros(num_classes, 5, dtype=torch.float64), [0] * num_classes
        self._epoch, (self._per_class, self._tokens) = 0, self._empty

    def add(self, epoch: int, per_class: torch.Tensor, tokens_per_class: Sequence[int]) -> None:
        """Add a step; steps whose loss is not finite are left out, as they are of the model."""
        if epoch != self._epoch:
            self._epoch, (self._per_class, self._tokens) = epoch, self._empty
        if bool(per_class.isfinite().all()):
            self._per_class = self._per_class + per_class
            self._tokens = [sum(pair) for pair in zip(self._tokens, tokens_per_class, strict=True)]

    def metrics(self, class_names: Sequence[str]) -> dict[str, Any]:
        """The means of the epoch so far."""
        return {"epoch": self._epoch, **step_metrics(self._per_class, class_names, tokens_per_class=self._tokens)}


class MetricsWriter:
    """Writes logged steps and validations; files are only ever appended to, and a resumed run goes on after its last step."""

    def __init__(self, output_dir: Path, recipe: Recipe, *, first_step: int) -> None:
        self._files = {
            name: _open_after(output_dir / name, first_step=first_step)
            for name in (METRICS_FILE, VALIDATION_FILE, SAMPLES_FILE)
        }
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
        self._append(METRICS_FILE, metrics)
        self._track(dict(_flatten(metrics)), metrics["step"])

    def write_validation(self, result: ValidationResult) -> None:
        """Write a validation and its samples to all places."""
        if result.line is not None:
            self._append(VALIDATION_FILE, result.line)
            matrix = {
                name: dict(zip((condition or "no condition" for condition in result.line["conditions"]), row, strict=True))
                for name, row in result.line["matrix"].items()
            }
            margins = {name: entry["margin"] for name, entry in result.line["learnt"].items()}
            shown = {"loss": result.line["loss"], "classes": result.line["classes"], "matrix": matrix, "margin": margins}
            self._track(dict(_flatten(shown, "validation/")), result.line["step"])
        for number, sample in enumerate(result.samples):
            self._append(SAMPLES_FILE, sample)
            if self._tensorboard is not None:
                self._tensorboard.add_text(
                    f"samples/{number}", json.dumps(sample, ensure_ascii=False, indent=1), sample["step"]
                )
        if self._wandb is not None and result.samples:
            import wandb

            rows = [[s["step"], s["prompt"], a["condition"], a["text"]] for s in result.samples for a in s["answers"]]
            columns = ["step", "prompt", "condition", "answer"]
            self._wandb.log({"samples": wandb.Table(columns=columns, data=rows)}, step=result.samples[0]["step"])

    def _append(self, name: str, document: dict[str, Any]) -> None:
        self._files[name].write(json.dumps(document, allow_nan=False, ensure_ascii=False) + "\n")
        self._files[name].flush()

    def _track(self, scalars: dict[str, float], step: int) -> None:
        if self._tensorboard is not None:
            for key, value in scalars.items():
                self._tensorboard.add_scalar(key, value, step)
        if self._wandb is not None:
            self._wandb.log(scalars, step=step)

    def close(self) -> None:
        """Finish all files."""
        for file in self._files.values():
            file.close()
        if self._tensorboard is not None:
            self._tensorboard.close()
        if self._wandb is not None:
            self._wandb.finish()


def _open_after(path: Path, *, first_step: int) -> TextIO:
    """A file of JSON lines to go on with after a step: what an earlier run wrote of later steps is taken out."""
    kept = [line for line in whole_lines(path) if json.loads(line)["step"] <= first_step] if first_step else []
    replace_text(path, "".join(kept))
    return path.open("a", encoding="utf-8")


def whole_lines(path: Path) -> list[str]:
    """Lines of a file, none where there is no file.

    A last line without its end was being written when the process was killed, and is left out.
    """
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    # not splitlines(), which also ends a line at characters that may stand in an answer (U+2028)
    return [f"{line}\n" for line in text.split("\n")[:-1]]


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

    def print(self, text: str) -> None:
        """Print lines above the bar."""
        if self._shown:
            tqdm.write(text, file=sys.stderr)

    def close(self) -> None:
        """Leave the bar as it is."""
        self._bar.close()


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
