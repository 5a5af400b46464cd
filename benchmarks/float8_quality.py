"""Does float8 learn as well as bfloat16? The same recipe, plan and seed on the GPU; losses in training and held out.

    python benchmarks/float8_quality.py RECIPE --steps 300 [--at-once] [--set KEY=VALUE ...]

Runs `ochat train` in bfloat16, in bfloat16 with layers that are not compiled (the same arithmetic, rounded elsewhere:
how much two such runs differ by chance), and in float8. Prints for each the mean weighted loss over the last steps and,
if the recipe holds conversations out, their weighted loss under the exported bfloat16 checkpoint; both
with the ratio to the first. Exit code 1 if float8 differs by more than 1 % in training. Choose steps for at most one
epoch: what a model fits by heart falls so steeply that any noise is a large ratio.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ochat_train.recipe.load import load_recipe

_LAST_STEPS = 30
_LARGEST_DIFFERENCE = 0.01
_VARIANTS = {
    "bfloat16": ("model.float8=false",),
    "bfloat16, not compiled": ("model.float8=false", "model.compile=false"),
    "float8": ("model.float8=true",),
}


def main() -> int:
    """Train all variants, score them, compare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("recipe")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--at-once", action="store_true", help="run all at the same time (a small model)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    arguments = parser.parse_args()
    recipe = load_recipe(Path(arguments.recipe), arguments.set)
    settings = [part for value in arguments.set for part in ("--set", value)]
    with tempfile.TemporaryDirectory() as name:
        runs = {variant: Path(name) / str(number) for number, variant in enumerate(_VARIANTS)}
        training = [
            [
                "-m",
                "ochat_train",
                arguments.recipe,
                "--resume",
                "never",
                *settings,
                *(
                    part
                    for value in (*_VARIANTS[variant], f"output_dir={run}", f"train.max_steps={arguments.steps}")
                    for part in ("--set", value)
                ),
            ]
            for variant, run in runs.items()
        ]
        start(training, at_once=arguments.at_once)
        losses = {variant: training_losses(run) for variant, run in runs.items()}
        held_out: dict[str, float] = {}
        if recipe.data.validation_ratio:
            score = ["-m", "ochat_train.ablation.score"]
            scoring = [[*score, str(run), recipe.data.prepared_dir, f"{run}.json"] for run in runs.values()]
            start(scoring, at_once=arguments.at_once)
            held_out = {variant: json.loads(Path(f"{run}.json").read_text())["loss"] for variant, run in runs.items()}
    finals = {variant: mean(values[-_LAST_STEPS:]) for variant, values in losses.items()}
    for variant, values in losses.items():
        shown = ", ".join(f"{value:.3f}" for value in values[:: max(1, len(values) // 10)])
        print(
            f"{variant}: {finals[variant]:.4f} over the last {_LAST_STEPS} of {len(values)} steps, "
            f"{finals[variant] / finals['bfloat16']:.5f} of bfloat16; every tenth of the run: {shown}"
        )
        if held_out:
            ratio = held_out[variant] / held_out["bfloat16"]
            print(f"    held out, in bfloat16: {held_out[variant]:.4f}, {ratio:.5f} of bfloat16")
    return int(abs(finals["float8"] / finals["bfloat16"] - 1) > _LARGEST_DIFFERENCE)


def start(commands: list[list[str]], *, at_once: bool) -> None:
    """Run Python with each command's arguments, each on its own GPU as far as there are some; exit if one
    fails.
    """
    started = []
    for number, command in enumerate(commands):
        device = str(number % max(1, torch.cuda.device_count()))
        started.append(subprocess.Popen([sys.executable, *command], env={**os.environ, "CUDA_VISIBLE_DEVICES": device}))
        if not at_once:
            started[-1].wait()
    codes = [process.wait() for process in started]
    if any(codes):
        sys.exit(f"ended with exit codes {codes}: {commands[0][1]}")


def training_losses(run: Path) -> list[float]:
    """The weighted loss of every step."""
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


if __name__ == "__main__":
    sys.exit(main())
