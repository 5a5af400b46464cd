"""Does float8 learn as well as bfloat16? The same recipe, plan and seed twice on the GPU; losses of the last steps.

    python benchmarks/float8_quality.py RECIPE --steps 300 [--set KEY=VALUE ...]

Runs `ochat train` for each precision, at the same time where there are two GPUs. Prints the mean weighted loss over the
last steps of both and their ratio; exit code 1 if they differ by more than 1 %.
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

_LAST_STEPS = 30
_LARGEST_DIFFERENCE = 0.01


def main() -> int:
    """Train both, print, compare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("recipe")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    arguments = parser.parse_args()
    settings = [part for value in arguments.set for part in ("--set", value)]
    precisions = {"bfloat16": "false", "float8": "true"}
    with tempfile.TemporaryDirectory() as folder:
        started = []
        for number, (name, float8) in enumerate(precisions.items()):
            command = [
                sys.executable, "-m", "ochat_train", arguments.recipe, "--resume", "never", *settings,
                "--set", f"model.float8={float8}", "--set", f"output_dir={folder}/{name}",
                "--set", f"train.max_steps={arguments.steps}",
            ]  # fmt: skip
            device = str(number % max(1, torch.cuda.device_count()))
            started.append(subprocess.Popen(command, env={**os.environ, "CUDA_VISIBLE_DEVICES": device}))
            if torch.cuda.device_count() < len(precisions):
                started[-1].wait()
        codes = [process.wait() for process in started]
        if any(codes):
            print(f"training ended with exit codes {codes}", file=sys.stderr)
            return 1
        losses = {
            name: [json.loads(line)["loss"] for line in (Path(folder) / name / "metrics.jsonl").read_text().splitlines()]
            for name in precisions
        }
    finals = {name: mean(values[-_LAST_STEPS:]) for name, values in losses.items()}
    ratio = finals["float8"] / finals["bfloat16"]
    for name, values in losses.items():
        shown = ", ".join(f"{value:.3f}" for value in values[:: max(1, len(values) // 10)])
        print(
            f"{name:>9}: {finals[name]:.4f} over the last {_LAST_STEPS} of {len(values)} steps; every tenth of the run: {shown}"
        )
    print(f"float8 / bfloat16: {ratio:.5f}")
    return int(abs(ratio - 1) > _LARGEST_DIFFERENCE)


if __name__ == "__main__":
    sys.exit(main())
