"""`ochat export`."""

from __future__ import annotations

import argparse
from pathlib import Path

from ochat_train.cli.arguments import Verb, file_size, step
from ochat_train.export.layout import DEFAULT_SHARD_SIZE


def add_export(verb: Verb) -> None:
    """Add the verb and its arguments."""
    export = verb(
        "export",
        _export,
        "Write a checkpoint as a Hugging Face folder.",
        "ochat export runs/quickstart --out runs/quickstart/export",
    )
    export.add_argument("run_dir", type=Path, metavar="RUN", help="run folder (`output_dir` of the recipe)")
    export.add_argument(
        "--step",
        type=step,
        metavar="N|best",
        help="step of the checkpoint, or the one with the lowest validation loss; default: the newest",
    )
    export.add_argument("--out", type=Path, required=True, help="folder to write")
    export.add_argument("--overwrite", action="store_true", help="replace an earlier export in that folder")
    export.add_argument(
        "--max-shard-size",
        type=file_size,
        default=DEFAULT_SHARD_SIZE,
        metavar="SIZE",
        help=f"write several files of at most this size (default {DEFAULT_SHARD_SIZE})",
    )


def _export(options: argparse.Namespace) -> None:
    from ochat_train.export.export import export

    out = export(
        options.run_dir,
        options.out,
        step=options.step,
        overwrite=options.overwrite,
        max_shard_size=options.max_shard_size,
    )
    print(f"exported and verified: {out}")
