"""`ochat ablate`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ochat_train.cli.arguments import add_gpus, add_json, positive
from ochat_train.cli.verb import Group, Verb
from ochat_train.system.messages import print_message, print_notice, print_result


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out", type=Path, required=True, help="folder of the ablation; the same command resumes an unfinished one"
    )
    parser.add_argument("--seeds", type=positive, default=1, help="trainings of each arm (default 1; a spread needs 2)")
    parser.add_argument("--arms", default="", metavar="A,B", help="only these arms")
    add_gpus(parser, meaning="GPUs (or CPU processes) of one training (default 1)", default=1)
    parser.add_argument("--parallel", type=positive, default=1, help="trainings at the same time (default 1)")
    parser.add_argument("--keep-checkpoints", action="store_true", help="keep the checkpoints of arms that are scored")
    add_json(parser)


def _run(options: argparse.Namespace) -> None:
    from ochat_train.recipe.load import load_recipe

    recipe = load_recipe(options.recipe, options.overrides)  # before torch: a wrong recipe costs no wait
    from ochat_train.ablation.ablate import Options, ablate
    from ochat_train.ablation.results_table import results_text

    choices = Options(
        folder=options.out,
        num_seeds=options.seeds,
        gpus=options.gpus,
        parallel=options.parallel,
        only=[name for name in options.arms.split(",") if name],
        keep_checkpoints=options.keep_checkpoints,
    )
    results = ablate(recipe, choices, say=print_notice, warn=print_message)
    text = f"{results_text(results)}\n{options.out / 'results.html'}"
    print_result(json.dumps(results.to_json()) if options.json else text)


ABLATE = Verb(
    name="ablate",
    group=Group.TRAIN,
    summary="Train and score the arms of C-RLFT's ablation: do conditioning and weighting help on this data?",
    example="ochat ablate recipes/quickstart.yaml --seeds 3 --out runs/quickstart-ablation",
    add_arguments=_add_arguments,
    run=_run,
    takes_recipe=True,
)
