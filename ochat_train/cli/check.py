"""`ochat check`."""

from __future__ import annotations

import argparse
import json

from data_pipeline.errors import UserError
from ochat_train.cli.arguments import add_gpus, add_json, positive_number
from ochat_train.cli.verb import Group, Verb
from ochat_train.system.messages import print_result, reader_may_leave


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_gpus(parser, meaning="number of GPUs; default: those of this machine, or 1", default=None)
    parser.add_argument(
        "--gpu-memory",
        type=positive_number,
        metavar="GIB",
        help="memory of a GPU in GiB; default: that of the GPUs here, or of an H100",
    )
    add_json(parser)


def _run(options: argparse.Namespace) -> None:
    from ochat_train.check.check import check
    from ochat_train.check.text import check_report, check_text

    findings = check(options.recipe, options.overrides, num_gpus=options.gpus, gpu_memory_gib=options.gpu_memory)
    with reader_may_leave():
        print_result(json.dumps(check_report(options.recipe, findings)) if options.json else check_text(findings))
    num_problems = sum(finding.level == "problem" for finding in findings)
    if num_problems:
        raise UserError(options.recipe, f"{num_problems} problem{'s' if num_problems > 1 else ''}")


CHECK = Verb(
    name="check",
    group=Group.LOOK,
    summary="Find what would stop a run before it uses a GPU. Each finding is ok, a warning or a problem.",
    example="ochat check recipes/quickstart.yaml --gpus 8",
    add_arguments=_add_arguments,
    run=_run,
    takes_recipe=True,
)
