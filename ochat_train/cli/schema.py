"""`ochat schema`."""

from __future__ import annotations

import argparse
import json

from ochat_train.cli.arguments import no_arguments
from ochat_train.cli.verb import Verb
from ochat_train.system.messages import print_result


def _run(options: argparse.Namespace) -> None:
    from ochat_train.recipe.sections import Recipe

    print_result(json.dumps(Recipe.model_json_schema(by_alias=True), indent=1))


SCHEMA = Verb(
    name="schema",
    summary="Print the JSON schema of recipes, for editors.",
    example="ochat schema > recipe.schema.json",
    add_arguments=no_arguments,
    run=_run,
)
