"""The `ochat` command: reads arguments, calls one function a verb, prints. No work is done here."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Sequence
from typing import Any

from data_pipeline.errors import ReportedError, UserError
from data_pipeline.files import cannot_use, cannot_write, is_out_of_room, is_unusable
from ochat_train import __version__
from ochat_train.cli.ablate import ABLATE
from ochat_train.cli.arguments import add_debug, add_recipe
from ochat_train.cli.chat import CHAT
from ochat_train.cli.check import CHECK
from ochat_train.cli.export import EXPORT
from ochat_train.cli.generate import GENERATE
from ochat_train.cli.init import INIT
from ochat_train.cli.inspect import INSPECT
from ochat_train.cli.plan import PLAN
from ochat_train.cli.prepare import PREPARE
from ochat_train.cli.push import PUSH
from ochat_train.cli.report import REPORT
from ochat_train.cli.schema import SCHEMA
from ochat_train.cli.train import TRAIN
from ochat_train.cli.verb import Verb
from ochat_train.system import exits
from ochat_train.system.messages import print_error

# In the order of `ochat --help`, which is about the order of use.
VERBS: tuple[Verb, ...] = (
    INIT,
    PREPARE,
    INSPECT,
    PLAN,
    CHECK,
    TRAIN,
    ABLATE,
    REPORT,
    EXPORT,
    PUSH,
    GENERATE,
    CHAT,
    SCHEMA,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit code (system/exits.py). Expected errors go to stderr as one message."""
    options = build_parser().parse_args(arguments)
    try:
        options.run(options)
        if sys.stdout is not None:  # `inspect` closes it when its reader has left
            sys.stdout.flush()  # a full disk behind it is an error with a message, before Python ends
    except ReportedError as error:
        if options.debug and isinstance(error, UserError):
            raise
        return _ended_by(error, options.verb)
    except OSError as error:  # a full disk can end any write, and permissions any use of a file
        if options.debug or not (is_out_of_room(error) or is_unusable(error)):
            raise
        if is_out_of_room(error):
            return _ended_by(cannot_write(error.filename, error), options.verb)
        return _ended_by(cannot_use(error.filename or "the output", error), options.verb)
    return exits.DONE


def _ended_by(error: ReportedError, verb: str) -> int:
    """Print an error, and return its exit code."""
    if error.each_process_prints or int(os.environ.get("RANK", "0")) == 0:
        with contextlib.suppress(OSError):  # the disk behind stderr may be full; the exit code says it too
            print_error(f"ochat {verb}: {error}")
    return error.exit_code


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command; each verb has its own parser."""
    parser = argparse.ArgumentParser(
        prog="ochat", description="Train chat models on conversations of mixed quality (C-RLFT)."
    )
    parser.add_argument("--version", action="version", version=f"ochat-train {__version__}")
    parsers = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb in VERBS:
        verb_parser = parsers.add_parser(
            verb.name,
            help=verb.summary,
            description=verb.summary,
            epilog=f"example:\n  {verb.example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        verb_parser.set_defaults(run=verb.run)
        add_arguments(verb_parser, verb)
    return parser


def add_arguments(parser: argparse.ArgumentParser, verb: Verb) -> None:
    """All arguments of a verb: those that it shares with others, then its own."""
    add_debug(parser)
    if verb.takes_recipe:
        add_recipe(parser)
    verb.add_arguments(parser)


def run_as_script() -> Any:
    """Entry point of the `ochat` script."""
    sys.exit(main())
