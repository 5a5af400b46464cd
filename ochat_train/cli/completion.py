"""`ochat completion`."""

from __future__ import annotations

import argparse

from ochat_train.cli.verb import Group, Verb
from ochat_train.system.messages import print_result, reader_may_leave

_SHELLS = ("bash", "zsh", "fish")


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=_SHELLS, help="the shell that you use")


@reader_may_leave()
def _run(options: argparse.Namespace) -> None:
    from data_pipeline.section import ANY, all_fields, inner_section
    from ochat_train.cli.main import VERBS
    from ochat_train.cli.parser import command_parser, verb_parsers
    from ochat_train.cli.shell_completion import completion_script, completions_of
    from ochat_train.recipe.recipe import Recipe

    keys = [
        ".".join(place)
        for place, field in all_fields(Recipe)
        if ANY not in place and inner_section(field.annotation) is None
    ]
    parsers = verb_parsers(command_parser(VERBS))
    verbs = {name: completions_of(parser, recipe_keys=keys) for name, parser in parsers.items()}
    print_result(completion_script(options.shell, verbs).rstrip("\n"))


COMPLETION = Verb(
    name="completion",
    group=Group.SET_UP,
    summary="Print what lets a shell complete verbs, flags and recipe keys.",
    example="ochat completion bash > ochat-completion.bash",
    add_arguments=_add_arguments,
    run=_run,
)
