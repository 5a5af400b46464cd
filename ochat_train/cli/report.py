"""`ochat report`."""

from __future__ import annotations

import argparse
from pathlib import Path

from ochat_train.cli.arguments import add_price
from ochat_train.cli.verb import Group, Verb
from ochat_train.system.messages import print_result


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "run_dirs",
        type=Path,
        nargs="+",
        metavar="RUN",
        help="run folder (`output_dir` of the recipe); several are compared on one page",
    )
    parser.add_argument(
        "--out", type=Path, help="file to write; default: report.html, or comparison.html, in the (first) run folder"
    )
    add_price(parser)


def _run(options: argparse.Namespace) -> None:
    first, *others = options.run_dirs
    if others:
        from ochat_train.report.comparison_page import write_comparison

        out = options.out or first / "comparison.html"
        write_comparison(options.run_dirs, out, price=options.price)
    else:
        from ochat_train.report.run_page import write_run_page

        out = options.out or first / "report.html"
        write_run_page(first, out, price=options.price)
    print_result(out)


REPORT = Verb(
    name="report",
    group=Group.TRAIN,
    summary="Write a run, or a comparison of several, as one HTML page.",
    example="ochat report runs/quickstart",
    add_arguments=_add_arguments,
    run=_run,
)
