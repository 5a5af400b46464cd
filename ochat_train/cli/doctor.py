"""`ochat doctor`."""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path

from data_pipeline.errors import UserError
from ochat_train.cli.arguments import add_json
from ochat_train.cli.verb import Group, Verb
from ochat_train.system.messages import print_result, reader_may_leave


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--folder", type=Path, default=Path(), help="folder on the disk to try (default: the current one)"
    )
    parser.add_argument("--online", action="store_true", help="also ask the Hugging Face Hub")
    add_json(parser)


def _run(options: argparse.Namespace) -> None:
    from ochat_train.check.machine import examine, num_problems
    from ochat_train.check.text import check_text, findings_report

    findings = examine(options.folder, online=options.online)
    with reader_may_leave():
        print_result(json.dumps(findings_report(findings)) if options.json else check_text(findings))
    if count := num_problems(findings):
        raise UserError(platform.node(), f"{count} problem{'s' if count > 1 else ''}")


DOCTOR = Verb(
    name="doctor",
    group=Group.SET_UP,
    summary="Look at this machine: versions, GPUs, kernels, compilers, memory, disk, each with what to do.",
    example="ochat doctor",
    add_arguments=_add_arguments,
    run=_run,
)
