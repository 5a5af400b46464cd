"""`ochat schema`."""

from __future__ import annotations

import argparse

from ochat_train.cli.verb import Group, Verb
from ochat_train.system.messages import print_result, reader_may_leave


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--template", action="store_true", help="of template files, which `model.template` may name")
    parser.add_argument(
        "--path", action="store_true", help="print where this installation has the schema as a file, instead of it"
    )


@reader_may_leave()
def _run(options: argparse.Namespace) -> None:
    from ochat_train.recipe.schema import SchemaName, schema_file, schema_text

    name: SchemaName = "template" if options.template else "recipe"
    print_result(schema_file(name) if options.path else schema_text(name))


SCHEMA = Verb(
    name="schema",
    group=Group.SET_UP,
    summary="Print the JSON schema of recipes or template files, for editors.",
    example="ochat schema > recipe.schema.json",
    add_arguments=_add_arguments,
    run=_run,
)
