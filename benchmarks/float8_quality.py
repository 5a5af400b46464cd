"""Does float8 learn as well as bfloat16? The same recipe, plan and seed on the GPU; losses of the last steps.

    python benchmarks/float8_quality.py RECIPE --steps 300 [--at-once] [--set KEY=VALUE ...]

Runs `ochat train` in bfloat16, in bfloat16 with layers that are not compiled (the same arithmetic, rounded elsewhere: how much
two such runs differ by chance), and in float8. Prints the mean weighted loss over the last steps of each and its ratio to the
first; exit code 1 if float8 differs by more than 1 %.
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
    parser.add_argument("--at-once", action="store_true", help="run all at the same time (a small model)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    arguments = parser.parse_args()
    settings = [part for value in arguments.set for part in ("--set", value)]
    variants = {
        "bfloat16": ("model.float8=false",),
        "bfloat16, not compiled": ("model.float8=false", "model.compile=false"),
        "float8": ("model.float8=true",),
    }
    with tempfile.TemporaryDirectory() as folder:
        started = []
        for number, values in enumerate(variants.values()):
            command = [
                sys.executable, "-m", "ochat_train", arguments.recipe, "--resume", "never", *settings,
                *(part for value in values for part in ("--set", value)), "--set", f"output_dir={folder}/{number}",
                "--set", f"train.max_steps={arguments.steps}",
            ]  # fmt: skip
            device = str(number % max(1, torch.cuda.device_count()))
            started.append(subprocess.Popen(command, env={**os.environ, "CUDA_VISIBLE_DEVICES": device}))
            if not arguments.at_once:
                started[-1].wait()
        codes = [process.wait() for process in started]
        if any(codes):
            print(f"training ended with exit codes {codes}", file=sys.stderr)
            return 1
        losses = {
            name: [json.loads(line)["loss"] for line in (Path(folder) / str(number) / "metrics.jsonl").read_text().splitlines()]
            for number, name in enumerate(variants)
        }
    finals = {name: mean(values[-_LAST_STEPS:]) for name, values in losses.items()}
    for name, values in losses.items():
        shown = ", ".join(f"{value:.3f}" for value in values[:: max(1, len(values) // 10)])
        print(
            f"{name}: {finals[name]:.4f} over the last {_LAST_STEPS} of {len(values)} steps, "
            f"{finals[name] / finals['bfloat16']:.5f} of bfloat16; every tenth of the run: {shown}"
        )
    return int(abs(finals["float8"] / finals["bfloat16"] - 1) > _LARGEST_DIFFERENCE)


if __name__ == "__main__":
    sys.exit(main())
