"""What the two loss denominators do to class weights in small and in large steps: real runs of a recipe with one
condition.

    python benchmarks/loss_denominators.py RECIPE --conversations 4,64 --epochs 2 [--set KEY=VALUE ...]

Trains the recipe's classes under one condition (so that weights alone tell them apart), with `loss_denominator` `step`
and `epoch`, in steps of about so many conversations. Prints for each run the effective weight ratio of the lightest
class to the heaviest, per supervised token: mean of (its weight in a step / denominator of the step) over its tokens,
from metrics.jsonl; and the held-out nll of both classes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from data_pipeline.prepared.dataset import Manifest  # noqa: E402
from ochat_train.ablation.arms import arms_of  # noqa: E402
from ochat_train.recipe.load import load_recipe  # noqa: E402
from ochat_train.recipe.preparation import prepare_recipe  # noqa: E402
from ochat_train.recipe.recipe import Recipe  # noqa: E402


def main() -> None:
    """Train all, print one table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--conversations", default="4,64", help="sizes of a step (default 4,64)")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    recipe = load_recipe(options.recipe, options.set)
    manifest, _ = prepare_recipe(recipe, num_workers=None, progress=lambda rows: None)
    mean_length = manifest.splits["train"].tokens / manifest.splits["train"].conversations
    heads = (
        "conversations",
        "denominator",
        "steps",
        "effective weight ratio",
        "nll of the heaviest",
        "nll of the lightest",
    )
    print("  ".join(heads))
    with tempfile.TemporaryDirectory() as folder:
        for size in map(int, options.conversations.split(",")):
            for denominator in ("step", "epoch"):
                row = run(
                    recipe,
                    manifest,
                    Path(folder),
                    tokens=round(size * mean_length),
                    denominator=denominator,
                    options=options,
                )
                print("  ".join([str(size), denominator, *row]), flush=True)


def run(
    recipe: Recipe, manifest: Manifest, folder: Path, *, tokens: int, denominator: str, options: argparse.Namespace
) -> list[str]:
    """Train once; steps, ratio and nll."""
    arm = next(
        arm for arm in arms_of(recipe, inference_condition=manifest.inference_condition) if arm.name == "weights-only"
    )
    values = recipe.model_dump(mode="json", by_alias=True, exclude_none=True)
    longest = max(tokens, 2 * round(manifest.splits["train"].tokens / manifest.splits["train"].conversations))
    values["model"]["max_length_tokens"] = min(values["model"]["max_length_tokens"], longest)
    values["data"] = {**arm.data, "prepared_dir": str(folder / f"prepared-{tokens}"), "overlong": "drop"}
    values["output_dir"] = str(folder / f"run-{tokens}-{denominator}")
    values["train"] |= {
        "pack_length_tokens": longest,
        "tokens_per_step": longest,
        "loss_denominator": denominator,
        "epochs": options.epochs,
        "log_every_steps": 1,
    }
    values["validation"] = {"sample_tokens": 0}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    prepared, _ = prepare_recipe(load_recipe(path), num_workers=None, progress=lambda rows: None)
    command = [sys.executable, "-m", "ochat_train", str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr[-3000:])
    steps = [json.loads(line) for line in (Path(values["output_dir"]) / "metrics.jsonl").read_text().splitlines()]
    validation = json.loads((Path(values["output_dir"]) / "validation.jsonl").read_text().splitlines()[-1])
    by_weight = sorted(prepared.classes, key=lambda row: row.weight or 0.0)
    lightest, heaviest = by_weight[0].name, by_weight[-1].name
    ratio = effective_weight(steps, lightest, denominator) / effective_weight(steps, heaviest, denominator)
    return [
        f"{len(steps):,}",
        f"{ratio:.3f}",
        *(f"{validation['classes'][name]['nll']:.4f}" for name in (heaviest, lightest)),
    ]


def effective_weight(steps: list[dict[str, Any]], name: str, denominator: str) -> float:
    """Mean over a class's supervised tokens of weight / denominator of the step, up to a factor that all classes
    share.
    """
    weights = tokens = 0.0
    for step in steps:
        row = step["classes"][name]
        share = (row["weight_share"] or 0.0) if denominator == "step" else (row["weight_share"] or 0.0) * step["weight"]
        weights, tokens = weights + share, tokens + row["supervised_tokens"]
    return weights / tokens


if __name__ == "__main__":
    main()
