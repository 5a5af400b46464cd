"""The `ochat` command: reads arguments, calls one function a verb, prints. No work is done here."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from data_pipeline.errors import UserError
from ochat_train import __version__
from ochat_train.cli.ablate import add_ablate
from ochat_train.cli.check import add_check
from ochat_train.cli.export import add_export
from ochat_train.cli.generate import add_generate
from ochat_train.cli.init import add_init
from ochat_train.cli.inspect import add_inspect
from ochat_train.cli.plan import add_plan
from ochat_train.cli.prepare import add_prepare
from ochat_train.cli.push import add_push
from ochat_train.cli.report import add_report
from ochat_train.cli.schema import add_schema
from ochat_train.cli.train import add_train
from ochat_train.system import exits


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; 0 only on success (exits.py has the codes). Problems a user can mend go to stderr as one
    message.
    """
    parser = build_parser()
    options = parser.parse_args(arguments)
    try:
        options.run(options)
    except UserError as error:
        if options.debug:
            raise
        every_rank_finds_it = not isinstance(error, exits.OneRankError)
        if int(os.environ.get("RANK", "0")) == 0 or not every_rank_finds_it:
            print(f"ochat {options.verb}: {error}", file=sys.stderr)
        return exits.USER_ERROR
    except exits.StoppedBySignalError as stop:
        if int(os.environ.get("RANK", "0")) == 0:
            print(f"ochat {options.verb}: {stop}", file=sys.stderr)
        return exits.STOPPED
    except exits.LostRanksError as error:
        print(f"ochat {options.verb}: {error}", file=sys.stderr)
        return exits.LOST_RANKS
    except exits.NotPushedError as error:
        print(f"ochat {options.verb}: {error}", file=sys.stderr)
        return exits.NOT_PUSHED
    return 0


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command; each verb has a parser of its own."""
    parser = argparse.ArgumentParser(
        prog="ochat", description="Train chat models on conversations of mixed quality (C-RLFT)."
    )
    parser.add_argument("--version", action="version", version=f"ochat-train {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name: str, run: Callable[[argparse.Namespace], None], text: str, example: str) -> argparse.ArgumentParser:
        sub = verbs.add_parser(
            name,
            help=text,
            description=text,
            epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.set_defaults(run=run)
        sub.add_argument("--debug", action="store_true", help="show a traceback with an error")
        return sub

    def recipe_verb(
        name: str, run: Callable[[argparse.Namespace], None], text: str, example: str
    ) -> argparse.ArgumentParser:
        sub = verb(name, run, text, example)
        sub.add_argument("recipe", type=Path, help="recipe file (YAML)")
        sub.add_argument(
            "--set",
            action="append",
            default=[],
            metavar="SECTION.KEY=VALUE",
            dest="overrides",
            help="change a value of the recipe; may be given several times",
        )
        return sub

    add_init(verb)
    add_prepare(recipe_verb)
    add_inspect(verb)
    add_plan(recipe_verb)
    add_check(recipe_verb)
    add_train(recipe_verb)
    add_ablate(recipe_verb)
    add_report(verb)
    add_export(verb)
    add_push(verb)
    add_generate(verb)
    add_schema(verb)
    return parser


def run_as_script() -> Any:
    """Entry point of the `ochat` script."""
    sys.exit(main())
