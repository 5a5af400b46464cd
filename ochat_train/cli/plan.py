"""`ochat plan`."""

from __future__ import annotations

import argparse
import json

from data_pipeline.errors import UserError
from ochat_train.cli.arguments import add_gpus, add_json, add_price, positive_number, share
from ochat_train.cli.verb import Group, Verb
from ochat_train.system.messages import print_result, reader_may_leave


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_gpus(parser, meaning="number of GPUs (default 1)", default=1)
    parser.add_argument(
        "--gpu",
        default="h100",
        metavar="h100|h200|a100|TFLOPS",
        help="kind of GPU, or its dense bfloat16 peak in TFLOP/s (default h100)",
    )
    parser.add_argument(
        "--gpu-memory", type=positive_number, metavar="GIB", help="memory of a GPU in GiB (default: that of the kind)"
    )
    parser.add_argument(
        "--mfu",
        type=share,
        metavar="SHARE",
        help="share of the peak to assume for the time, defined as `mfu` in metrics.jsonl, for example 0.5; default: "
        "measured values",
    )
    add_price(parser)
    add_json(parser)


def _run(options: argparse.Namespace) -> None:
    from ochat_train.recipe.load import load_recipe

    recipe = load_recipe(options.recipe, options.overrides)  # before torch: a wrong recipe costs no wait
    from ochat_train.planning.report import plan_report
    from ochat_train.planning.text import plan_text
    from ochat_train.planning.time import find_gpu

    gpu = find_gpu(options.gpu, memory_gib=options.gpu_memory)
    report = plan_report(recipe, num_gpus=options.gpus, gpu=gpu, mfu=options.mfu, price=options.price)
    with reader_may_leave():
        print_result(json.dumps(report.to_json()) if options.json else plan_text(report))
    if not report.fits:
        raise UserError(f"{options.gpus} GPU(s)", "no setting of this recipe fits", "what would help is said above")


PLAN = Verb(
    name="plan",
    group=Group.LOOK,
    summary="Show what a training would do: steps, learning rate, memory, time. Nothing is trained.",
    example="ochat plan recipes/openchat_3_5.yaml --gpus 8 --gpu h100",
    add_arguments=_add_arguments,
    run=_run,
    takes_recipe=True,
)
