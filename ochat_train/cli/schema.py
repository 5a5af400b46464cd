"""`ochat schema`."""

from __future__ import annotations

import argparse
import json

from ochat_train.cli.arguments import Verb


def add_schema(verb: Verb) -> None:
    """Add the verb and its arguments."""
    verb("schema", _schema, "Print the JSON schema of recipes, for editors.", "ochat schema > recipe.schema.json")


def _schema(options: argparse.Namespace) -> None:
    from ochat_train.recipe.sections import Recipe

    print(json.dumps(Recipe.model_json_schema(by_alias=True), indent=1))
