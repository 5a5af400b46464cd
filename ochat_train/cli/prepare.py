"""`ochat prepare`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ochat_train.cli.arguments import add_json, positive
from ochat_train.cli.verb import Group, Verb
from ochat_train.system.messages import print_message, print_result, shows_progress


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workers", type=positive, help="processes; default: one per core")
    add_json(parser)


def _run(options: argparse.Namespace) -> None:
    from tqdm import tqdm

    from ochat_train.recipe.load import load_recipe
    from ochat_train.recipe.preparation import prepare_recipe, prepare_report
    from ochat_train.report.text import prepare_text

    recipe = load_recipe(options.recipe, options.overrides)
    with tqdm(desc="prepare", unit="row", disable=not shows_progress()) as bar:
        manifest, reused = prepare_recipe(recipe, num_workers=options.workers, progress=bar.update, say=print_message)
    if options.json:
        print_result(json.dumps(prepare_report(manifest), ensure_ascii=False))
    else:
        print_result(prepare_text(manifest, Path(recipe.data.prepared_dir), reused=reused))


PREPARE = Verb(
    name="prepare",
    group=Group.DATA,
    summary="Turn raw conversations into a prepared dataset.",
    example="ochat prepare recipes/quickstart.yaml",
    add_arguments=_add_arguments,
    run=_run,
    takes_recipe=True,
)
