"""`ochat ablate`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from ochat_train.cli.arguments import Verb, positive


def add_ablate(recipe_verb: Verb) -> None:
    """Add the verb and its arguments."""
    text = "Train and score the arms of C-RLFT's ablation: is conditioning, is weighting, worth it on these data?"
    ablate = recipe_verb(
        "ablate", _ablate, text, "ochat ablate recipes/quickstart.yaml --seeds 3 --out runs/quickstart-ablation"
    )
    ablate.add_argument(
        "--out", type=Path, required=True, help="folder of the ablation; started again, it goes on there"
    )
    ablate.add_argument("--seeds", type=positive, default=1, help="trainings of each arm (default 1; a spread needs 2)")
    ablate.add_argument("--arms", default="", metavar="A,B", help="only these arms")
    ablate.add_argument("--gpus", type=positive, default=1, help="GPUs (or CPU processes) of one training (default 1)")
    ablate.add_argument("--parallel", type=positive, default=1, help="trainings at the same time (default 1)")
    ablate.add_argument("--keep-checkpoints", action="store_true", help="keep the checkpoints of arms that are scored")
    ablate.add_argument("--json", action="store_true", help="print one JSON document")


def _ablate(options: argparse.Namespace) -> None:
    from ochat_train.recipe.load import load_recipe

    recipe = load_recipe(options.recipe, options.overrides)
    from ochat_train.ablation.ablate import Options, ablate
    from ochat_train.ablation.results_table import results_text

    arms = [name for name in options.arms.split(",") if name]
    choices = Options(
        folder=options.out,
        num_seeds=options.seeds,
        gpus=options.gpus,
        parallel=options.parallel,
        only=arms,
        keep_checkpoints=options.keep_checkpoints,
    )
    results = ablate(recipe, choices, say=lambda text: print(text, file=sys.stderr, flush=True))
    print(json.dumps(results.to_json()) if options.json else f"{results_text(results)}\n{options.out / 'results.html'}")
