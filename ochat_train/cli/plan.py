"""`ochat plan`."""

from __future__ import annotations

import argparse
import json

from ochat_train.cli.arguments import Verb, positive, positive_number, share


def add_plan(recipe_verb: Verb) -> None:
    """Add the verb and its arguments."""
    text = "Say what a recipe would do, without training."
    plan = recipe_verb("plan", _plan, text, "ochat plan recipes/openchat_3_5.yaml --gpus 8 --gpu h100")
    plan.add_argument("--gpus", type=positive, default=1, help="number of GPUs (default 1)")
    plan.add_argument(
        "--gpu",
        default="h100",
        metavar="h100|h200|a100|TFLOPS",
        help="kind of GPU, or its dense bfloat16 peak in TFLOP/s (default h100)",
    )
    plan.add_argument(
        "--gpu-memory", type=positive_number, metavar="GIB", help="memory of a GPU in GiB (default: the kind's)"
    )
    plan.add_argument(
        "--mfu",
        type=share,
        metavar="SHARE",
        help="share of the peak to reckon the time with, counted as `mfu` in metrics.jsonl, for example 0.5; default: "
        "measured",
    )
    plan.add_argument("--json", action="store_true", help="print one JSON document")


def _plan(options: argparse.Namespace) -> None:
    from ochat_train.recipe.load import load_recipe

    recipe = load_recipe(options.recipe, options.overrides)  # before torch
    from ochat_train.planning.report import plan_report
    from ochat_train.planning.text import plan_text
    from ochat_train.planning.time import find_gpu

    gpu = find_gpu(options.gpu, memory_gib=options.gpu_memory)
    report = plan_report(recipe, num_gpus=options.gpus, gpu=gpu, mfu=options.mfu)
    print(json.dumps(report.to_json()) if options.json else plan_text(report))
