"""`ochat train`."""

from __future__ import annotations

import argparse
import os
import socket

from data_pipeline.errors import UserError
from ochat_train.cli.arguments import Verb
from ochat_train.system import exits


def add_train(recipe_verb: Verb) -> None:
    """Add the verb and its arguments."""
    train = recipe_verb(
        "train",
        _train,
        "Train on a prepared dataset, under `deepspeed`, `torchrun` or alone.",
        "deepspeed --num_gpus 8 --module ochat_train recipes/openchat_3_5.yaml",
    )
    train.add_argument(
        "--resume",
        default="auto",
        metavar="auto|never|PATH",
        help="go on from the newest intact checkpoint (auto, the default), start anew, or go on from a checkpoint "
        "folder",
    )
    train.add_argument(
        "--accept-changes",
        action="store_true",
        help="go on from a checkpoint although data or settings have changed since it was written",
    )
    train.add_argument(
        "--local_rank", type=int, help=argparse.SUPPRESS
    )  # given by the deepspeed launcher; LOCAL_RANK counts


def _train(options: argparse.Namespace) -> None:
    from ochat_train.recipe.load import load_recipe

    try:
        recipe = load_recipe(
            options.recipe, options.overrides
        )  # before torch: a wrong recipe costs a second, not a GPU
    except UserError as error:
        if int(os.environ.get("RANK", "0")) > 0 and os.environ.get("LOCAL_RANK") == "0":  # of another host
            raise exits.OneRankError(f"{socket.gethostname()}", f"{error}") from None
        raise
    from ochat_train.training.run import train

    train(recipe, resume=options.resume, accept_changes=options.accept_changes)
