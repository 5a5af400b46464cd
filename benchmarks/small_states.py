"""Do smaller optimizer states learn as well as float32 ones, and what does an update cost? One run, one table.

    python benchmarks/small_states.py --base SMOLLM2 --rows gsm8k_two_class.openchat.jsonl --at-once --json states.json
    python benchmarks/small_states.py --base SMOLLM2 --rows gsm8k_two_class.openchat.jsonl --steps 20 --cpu

Trains one recipe, plan and seed with each `optimizer.states`, and once with float32 states under another gradient dtype
(how much the losses of two such runs differ by rounding alone). Prints for each the mean weighted loss of the last
steps and the held-out loss at the end, with the ratio to `float32`, and the size of the last checkpoint. Then the time
and the memory of one update of `--update` parameters. Exit code 1 if a loss of `bfloat16` or `8bit` is more than 0.5 %
from float32's. Choose steps for at most one epoch: what a model fits by heart falls so steeply that any noise is a
large ratio.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import mean
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from ochat_train.optimizer.adamw import SmallAdamW  # noqa: E402
from ochat_train.optimizer.size import STATE_SIZES  # noqa: E402
from ochat_train.recipe.load import load_recipe  # noqa: E402
from ochat_train.recipe.preparation import prepare_recipe  # noqa: E402

_LAST_STEPS = 30
_LARGEST_DIFFERENCE = 0.005
_CONTROL = "float32, bfloat16 gradients"
_VARIANTS = {
    "float32": ("optimizer.states=float32",),
    _CONTROL: ("optimizer.states=float32", "train.gradient_dtype=bfloat16"),
    "bfloat16": ("optimizer.states=bfloat16",),
    "8bit": ("optimizer.states=8bit",),
}
_RECIPE = """
name: small_states
seed: 0
output_dir: {folder}/run
model: {{path: {base}, template: openchat_3.5, max_length_tokens: 512, precision: bfloat16}}
data:
  prepared_dir: {folder}/prepared
  sources: [{{path: {rows}, format: openchat}}]
  validation_ratio: 0.05
train: {{epochs: 10, max_steps: {steps}, pack_length_tokens: 512, packs_per_micro_batch: 1, tokens_per_step: {tokens}}}
optimizer: {{learning_rate: {rate}, warmup_ratio: 0.05, min_lr_ratio: 0.1, weight_decay: 0.1, betas: [0.9, 0.95],
             eps: 1.0e-8}}
deepspeed: {{zero_stage: 1}}
validation: {{every_steps: {steps}, sample_tokens: 0}}
checkpoint: {{keep_last: 1}}
"""


def main() -> int:
    """Train all variants, compare them, time an update."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--base", required=True, help="SmolLM2-135M, or another small base: a folder or a Hub name")
    parser.add_argument("--rows", required=True, type=Path, help="conversations in OpenChat's format")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--tokens-per-step", type=int, default=1024)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--variants", default=";".join(_VARIANTS), help="separated by semicolons; `float32` is needed")
    parser.add_argument("--update", type=int, default=500_000_000, help="parameters of the timed update; 0: none")
    parser.add_argument("--at-once", action="store_true", help="train all variants at the same time")
    parser.add_argument("--cpu", action="store_true", help="use no GPU")
    parser.add_argument("--json", type=Path, help="write all figures here")
    arguments = parser.parse_args()
    chosen = arguments.variants.split(";")
    if unknown := set(chosen) - set(_VARIANTS) or {"float32"} - set(chosen):
        parser.error(f"variants: {', '.join(sorted(unknown))}; known: {'; '.join(_VARIANTS)}")
    with tempfile.TemporaryDirectory() as name:
        results = train_all(Path(name), arguments, chosen)
    updates = []
    if arguments.update:
        device = torch.device("cuda" if torch.cuda.is_available() and not arguments.cpu else "cpu")
        updates = [timed_update(states, arguments.update, device) for states in STATE_SIZES]
    print_tables(results, updates, steps=arguments.steps, update=arguments.update)
    if arguments.json:
        document = {"training": results, "updates": updates, "torch": torch.__version__}
        arguments.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return int(any(abs(ratio - 1) > _LARGEST_DIFFERENCE for ratio in judged(results)))


def train_all(folder: Path, arguments: argparse.Namespace, chosen: list[str]) -> dict[str, dict[str, Any]]:
    """Losses of every variant, by name."""
    recipe = folder / "recipe.yaml"
    text = _RECIPE.format(
        folder=folder,
        base=arguments.base,
        rows=arguments.rows.resolve(),
        steps=arguments.steps,
        tokens=arguments.tokens_per_step,
        rate=arguments.learning_rate,
    )
    recipe.write_text(text, encoding="utf-8")
    prepare_recipe(load_recipe(recipe), num_workers=1, progress=lambda rows: None)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    if arguments.cpu:
        environment["CUDA_VISIBLE_DEVICES"] = ""
    started, results = {}, {}
    for number, variant in enumerate(chosen):
        values = (*_VARIANTS[variant], f"output_dir={folder / str(number)}")
        settings = [part for value in values for part in ("--set", value)]
        command = [sys.executable, "-m", "ochat_train", str(recipe), *settings]
        log = (folder / f"{number}.log").open("w", encoding="utf-8")
        print(f"{variant} ...", file=sys.stderr, flush=True)
        with log:
            started[variant] = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
        if not arguments.at_once:
            started[variant].wait()
    for number, (variant, process) in enumerate(started.items()):
        if process.wait():
            words = (folder / f"{number}.log").read_text(encoding="utf-8")[-3000:]
            sys.exit(f"{variant} ended with exit code {process.returncode}:\n{words}")
        results[variant] = result_of(folder / str(number))
    return results


def result_of(run: Path) -> dict[str, Any]:
    """What a run's files say of it."""
    losses = [row["loss"] for row in rows_of(run / "metrics.jsonl")]
    checkpoint = max((run / "checkpoints").glob("step-*"))
    return {
        "losses": losses,
        "final": mean(losses[-_LAST_STEPS:]),
        "held_out": rows_of(run / "validation.jsonl")[-1]["loss"],
        "checkpoint_bytes": sum(path.stat().st_size for path in checkpoint.rglob("*") if path.is_file()),
        "memory_gib": max((row["memory_gib"] or 0.0) for row in rows_of(run / "metrics.jsonl")),
    }


def rows_of(path: Path) -> list[dict[str, Any]]:
    """Rows of a file of JSON lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def judged(results: dict[str, dict[str, Any]]) -> list[float]:
    """Ratios of losses that must be near 1."""
    truth = results["float32"]
    small = [found for variant, found in results.items() if variant in ("bfloat16", "8bit")]
    return [found[key] / truth[key] for found in small for key in ("final", "held_out")]


def timed_update(states: str, num: int, device: torch.device) -> dict[str, Any]:
    """Milliseconds of an update of `num` parameters, its states, and what it needs beside them and the gradient."""
    is_gpu = device.type == "cuda"
    wide = states == "float32"  # DeepSpeed gives the optimizer float32 masters and gradients then
    parameter = torch.nn.Parameter(torch.zeros(num, dtype=torch.float32 if wide else torch.bfloat16, device=device))
    parameter.grad = torch.full_like(parameter, 1e-3)
    settings: dict[str, Any] = {"lr": 1e-5, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
    optimizer: torch.optim.Optimizer
    if wide:
        optimizer = torch.optim.AdamW([parameter], fused=is_gpu, **settings)
    else:
        optimizer = SmallAdamW([parameter], states=states, seed=0, compiled=is_gpu, **settings)
    begin = time.monotonic()
    optimizer.step()
    if is_gpu:
        torch.cuda.synchronize()
    first, seconds, peak, held = time.monotonic() - begin, [], 0, 0
    for _ in range(5 if is_gpu else 1):
        if is_gpu:
            torch.cuda.reset_peak_memory_stats()
            held = torch.cuda.memory_allocated()
        begin = time.monotonic()
        optimizer.step()
        if is_gpu:
            torch.cuda.synchronize()
            peak = torch.cuda.max_memory_allocated() - held
        seconds.append(time.monotonic() - begin)
    return {"states": states, "seconds": min(seconds), "first_seconds": first, "temporary_bytes": peak}


def print_tables(results: dict[str, dict[str, Any]], updates: list[dict[str, Any]], *, steps: int, update: int) -> None:
    """Both tables."""
    truth = results["float32"]
    last = min(_LAST_STEPS, steps)
    head = f"loss of the last {last} of {steps} steps"
    print(
        f"{'optimizer.states':<30}{head:>34}{'x float32':>11}{'held out':>10}{'x float32':>11}{'checkpoint':>12}"
        f"{'peak':>7}"
    )
    for variant, found in results.items():
        ratios = [found[key] / truth[key] for key in ("final", "held_out")]
        print(
            f"{variant:<30}{found['final']:>34.4f}{ratios[0]:>11.5f}{found['held_out']:>10.4f}{ratios[1]:>11.5f}"
            f"{found['checkpoint_bytes'] / 1e6:>9,.0f} MB{found['memory_gib']:>7.2f}"
        )
    for found in updates:
        print(
            f"update of {update:,} parameters, {found['states']}: {found['seconds'] * 1e3:.1f} ms "
            f"({found['seconds'] / update * 7.24e12:.0f} ms for 7.24 billion), first {found['first_seconds']:.1f} s, "
            f"{found['temporary_bytes'] / update:.2f} bytes a parameter beside states and gradient"
        )


if __name__ == "__main__":
    sys.exit(main())
