"""`ochat export`."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from ochat_train.cli.arguments import file_size, step
from ochat_train.cli.verb import Group, Verb
from ochat_train.export.layout import DEFAULT_SHARD_SIZE
from ochat_train.system.messages import print_result


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_dir", type=Path, metavar="RUN", help="run folder (`output_dir` of the recipe)")
    parser.add_argument(
        "--step",
        type=step,
        metavar="N|best",
        help="step of the checkpoint, or the one with the lowest validation loss; default: the newest",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument(
        "--adapter",
        action="store_true",
        help="of a run with an adapter, write the adapter alone, as PEFT loads it; default: merged into its base",
    )
    parser.add_argument(
        "--base", metavar="HUB_ID|FOLDER", help="base of a run with an adapter; default: where the run had it"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier export in that folder")
    parser.add_argument(
        "--max-shard-size",
        type=file_size,
        default=DEFAULT_SHARD_SIZE,
        metavar="SIZE",
        help=f"split the weights into files of at most this size (default {DEFAULT_SHARD_SIZE})",
    )
    add_results_option(parser)


def add_results_option(parser: argparse.ArgumentParser) -> None:
    """`--results`, which push has too."""
    parser.add_argument(
        "--results", type=Path, metavar="FILE", help="results.json of `ochat eval` of this model, for its model card"
    )


def _run(options: argparse.Namespace) -> None:
    from ochat_train.export.benchmarks_card import add_results
    from ochat_train.export.export import export, no_finish
    from ochat_train.suites.results_file import read_results

    finish = no_finish
    if options.results is not None:
        finish = partial(add_results, results=read_results(options.results))
    out = export(
        options.run_dir,
        options.out,
        step=options.step,
        overwrite=options.overwrite,
        max_shard_size=options.max_shard_size,
        adapter=options.adapter,
        base=options.base,
        finish=finish,
    )
    print_result(f"exported and verified: {out}")


EXPORT = Verb(
    name="export",
    group=Group.USE,
    summary="Write a checkpoint as a Hugging Face folder.",
    example="ochat export runs/quickstart --out runs/quickstart/export",
    add_arguments=_add_arguments,
    run=_run,
)
