"""`ochat check`."""

from __future__ import annotations

import argparse
import json

from data_pipeline.errors import UserError
from ochat_train.cli.arguments import Verb, positive, positive_number


def add_check(recipe_verb: Verb) -> None:
    """Add the verb and its arguments."""
    text = "Say everything about a recipe that can be known before a GPU is held: ok, warning or problem."
    check = recipe_verb("check", _check, text, "ochat check recipes/quickstart.yaml --gpus 8")
    check.add_argument("--gpus", type=positive, help="number of GPUs; default: those of this machine, or 1")
    check.add_argument(
        "--gpu-memory",
        type=positive_number,
        metavar="GIB",
        help="memory of a GPU in GiB; default: as of the GPUs here, or an H100's",
    )
    check.add_argument("--json", action="store_true", help="print one JSON document")


def _check(options: argparse.Namespace) -> None:
    from ochat_train.check.run import check, check_report, check_text

    findings = check(options.recipe, options.overrides, num_gpus=options.gpus, gpu_memory_gib=options.gpu_memory)
    print(json.dumps(check_report(options.recipe, findings)) if options.json else check_text(findings))
    num_problems = sum(finding.level == "problem" for finding in findings)
    if num_problems:
        raise UserError(options.recipe, f"{num_problems} problem{('s' if num_problems > 1 else '')}")
