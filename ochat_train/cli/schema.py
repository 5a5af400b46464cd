"""`ochat schema`."""

from __future__ import annotations

import argparse
import json

from ochat_train.cli.verb import Group, Verb
from ochat_train.system.messages import print_result


def _run(options: argparse.Namespace) -> None:
    from data_pipeline.prompt.template import Template
    from ochat_train.recipe.recipe import Recipe

    document = Template if options.template else Recipe
    print_result(json.dumps(document.model_json_schema(by_alias=True), indent=1))


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--template", action="store_true", help="of template files, which `model.template` may name")


SCHEMA = Verb(
    name="schema",
    group=Group.SET_UP,
    summary="Print the JSON schema of recipes or template files, for editors.",
    example="ochat schema > recipe.schema.json",
    add_arguments=_add_arguments,
    run=_run,
)
