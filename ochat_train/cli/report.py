"""`ochat report`."""

from __future__ import annotations

import argparse
from pathlib import Path

from ochat_train.cli.verb import Group, Verb
from ochat_train.system.messages import print_result


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_dir", type=Path, metavar="RUN", help="run folder (`output_dir` of the recipe)")
    parser.add_argument("--out", type=Path, help="file to write; default: report.html in the run folder")


def _run(options: argparse.Namespace) -> None:
    from ochat_train.report.run_page import write_run_page

    out = options.out or options.run_dir / "report.html"
    write_run_page(options.run_dir, out)
    print_result(out)


REPORT = Verb(
    name="report",
    group=Group.TRAIN,
    summary="Write a run as one HTML page.",
    example="ochat report runs/quickstart",
    add_arguments=_add_arguments,
    run=_run,
)
