"""`ochat report`."""

from __future__ import annotations

import argparse
from pathlib import Path

from ochat_train.cli.arguments import Verb


def add_report(verb: Verb) -> None:
    """Add the verb and its arguments."""
    report = verb("report", _report, "Write a run as one HTML page.", "ochat report runs/quickstart")
    report.add_argument("run_dir", type=Path, metavar="RUN", help="run folder (`output_dir` of the recipe)")
    report.add_argument("--out", type=Path, help="file to write; default: report.html in the run folder")


def _report(options: argparse.Namespace) -> None:
    from ochat_train.report.run_page import write_run_page

    out = options.out or options.run_dir / "report.html"
    write_run_page(options.run_dir, out)
    print(out)
