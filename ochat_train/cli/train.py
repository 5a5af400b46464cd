"""`ochat train`."""

from __future__ import annotations

import argparse
import os
import socket
from pathlib import Path

from data_pipeline.errors import UserError
from ochat_train.cli.verb import Group, Verb
from ochat_train.system.exits import found_on_host


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--resume",
        default="auto",
        metavar="auto|never|PATH",
        help="auto (the default): continue from the newest intact checkpoint; never: start from the beginning; PATH: "
        "continue from this checkpoint folder",
    )
    parser.add_argument(
        "--accept-changes",
        action="store_true",
        help="continue from a checkpoint even if data or settings have changed since it was written",
    )
    # the deepspeed launcher passes this and sets LOCAL_RANK; only LOCAL_RANK is read
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)


def _run(options: argparse.Namespace) -> None:
    from ochat_train.recipe.load import load_recipe

    try:
        recipe = load_recipe(options.recipe, options.overrides)  # before torch: a wrong recipe costs a second
    except UserError as error:
        raise found_on_host(error, os.environ, host=socket.gethostname()) from None
    if options.resume not in ("auto", "never") and not Path(options.resume).is_dir():
        remedy = "give `auto`, `never` or the folder of a checkpoint (OUTPUT_DIR/checkpoints/step-...)"
        raise UserError(f"--resume {options.resume}", "no such folder", remedy)
    from ochat_train.training.run import train

    train(recipe, resume=options.resume, accept_changes=options.accept_changes)


TRAIN = Verb(
    name="train",
    group=Group.TRAIN,
    summary="Train on a prepared dataset, under `deepspeed`, `torchrun` or alone.",
    example="deepspeed --num_gpus 8 --module ochat_train recipes/openchat_3_5.yaml",
    add_arguments=_add_arguments,
    run=_run,
    takes_recipe=True,
)
