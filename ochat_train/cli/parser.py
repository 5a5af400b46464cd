"""The parser of the command line: help by groups, defaults and metavars in one form, errors with the verb's usage."""

from __future__ import annotations

import argparse
import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from data_pipeline.errors import UserError
from data_pipeline.files import cannot_write
from data_pipeline.text_rules import did_you_mean
from ochat_train import __version__
from ochat_train.cli.arguments import (
    add_common,
    add_recipe,
    number_from_zero,
    positive,
    positive_number,
    share,
    whole_number,
)
from ochat_train.cli.verb import Group, Verb
from ochat_train.system.messages import give_up_results, print_piece, reader_may_leave

_DESCRIPTION = "Train chat models on conversations of mixed quality (C-RLFT)."
# What the value of an argument is called in help where the verb gives it no name of its own.
_METAVARS: Mapping[Any, str] = {
    positive: "N",
    whole_number: "N",
    int: "N",
    positive_number: "X",
    number_from_zero: "X",
    share: "X",
    Path: "PATH",
}
_NAME_COLUMNS = 14
PASSED_ON = "vllm_flags"  # where what follows `--` is kept, for verbs that take it


class VerbParser(argparse.ArgumentParser):
    """The parser of a verb, or of the whole command."""

    def error(self, message: str) -> NoReturn:
        """Print what is wrong, the usage, and where help is; exit with 2."""
        self.print_usage(sys.stderr)
        self.exit(2, f"{self.prog}: error: {message}; see {self.prog} --help\n")

    def _print_message(self, message: str, file: Any = None) -> None:
        """Print a help or a version to standard output, which may be a full disk; argparse would call that a success.

        Usage and errors go to standard error; where nothing can be written there, the exit code says it.
        """
        if file is None or file is not sys.stdout:
            super()._print_message(message, file)
            return
        try:
            with reader_may_leave():
                print_piece(message)
        except OSError as error:
            give_up_results()
            self.exit(UserError.exit_code, f"{self.prog}: {cannot_write(None, error)}\n")


def command_parser(verbs: Sequence[Verb]) -> argparse.ArgumentParser:
    """The parser of `ochat`, with one parser for each verb."""
    parser = VerbParser(
        prog="ochat",
        usage="ochat [-h] [--version] VERB ...",
        description=f"{_DESCRIPTION}\n\n{_listed(verbs, columns=_help_columns())}",
        epilog="ochat VERB --help says what a verb takes.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"ochat-train {__version__}")
    # the description lists the verbs, by groups; argparse has one flat list
    parsers = parser.add_subparsers(
        dest="verb", required=True, metavar="VERB", help=argparse.SUPPRESS, prog="ochat", parser_class=VerbParser
    )
    for verb in verbs:
        verb_parser = parsers.add_parser(
            verb.name,
            description=verb.summary,
            epilog=f"example:\n  {verb.example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        verb_parser.set_defaults(run=verb.run, writes_log=verb.writes_log)
        add_arguments(verb_parser, verb)
    return parser


def add_arguments(parser: argparse.ArgumentParser, verb: Verb) -> None:
    """All arguments of a verb: those of every verb, those that it shares with others, then its own."""
    add_common(parser)
    if verb.takes_recipe:
        add_recipe(parser)
    verb.add_arguments(parser)
    for action in parser._actions:
        _complete_help(action)


def parse(verbs: Sequence[Verb], arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options of a command line. Exits with 2, and the usage of the right verb, where it is wrong."""
    typed = list(sys.argv[1:] if arguments is None else arguments)
    parser = command_parser(verbs)
    names = [verb.name for verb in verbs]
    if typed and not typed[0].startswith("-") and typed[0] not in names:
        hint = did_you_mean(typed[0], names) or f"verbs: {', '.join(names)}"
        parser.error(f"`{typed[0]}` is not a verb; {hint}")
    options, stray = parser.parse_known_args(typed)
    if stray and "--" in typed and hasattr(options, PASSED_ON):  # argparse reads `FOLDER --option -- FLAGS` wrongly
        cut = typed.index("--")
        options, stray = parser.parse_known_args(typed[:cut])
        setattr(options, PASSED_ON, typed[cut + 1 :])
    if stray:
        verb_parser = verb_parsers(parser)[options.verb]
        verb_parser.error(_stray_text(stray, list(verb_parser._option_string_actions)))
    return options


def verb_parsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The parser of each verb, by its name."""
    (action,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return dict(action.choices)


def _stray_text(stray: Sequence[str], flags: Sequence[str]) -> str:
    """Arguments that nothing takes, with the nearest flag of those that are one."""
    first = stray[0].partition("=")[0]
    hint = did_you_mean(first, flags) if first.startswith("-") else ""
    what = "unknown flag" if first.startswith("-") else "unexpected argument"
    return f"{what}{'s' if len(stray) > 1 else ''}: {' '.join(stray)}{'; ' + hint if hint else ''}"


def _complete_help(action: argparse.Action) -> None:
    """Name the value by its type, and say the default, where the verb has done neither."""
    takes_value = action.nargs != 0
    if takes_value and action.metavar is None and action.choices is None:
        action.metavar = _METAVARS.get(action.type, "TEXT") if action.option_strings else action.dest.upper()
    is_said = action.help is None or "default" in action.help or action.help == argparse.SUPPRESS
    if takes_value and not is_said and action.default not in (None, "", [], argparse.SUPPRESS):
        action.help = f"{action.help} (default {action.default})"


def _listed(verbs: Sequence[Verb], *, columns: int) -> str:
    """The verbs with their summaries, under the heading of each group."""
    blocks = []
    for group in Group:
        lines = [_summary_lines(verb, columns) for verb in verbs if verb.group is group]
        if lines:
            blocks.append("\n".join([f"{group.value}:", *lines]))
    return "\n\n".join(blocks)


def _summary_lines(verb: Verb, columns: int) -> str:
    head = f"  {verb.name:<{_NAME_COLUMNS - 2}}"
    return textwrap.fill(
        verb.summary, width=max(40, columns), initial_indent=head, subsequent_indent=" " * _NAME_COLUMNS
    )


def _help_columns() -> int:
    return shutil.get_terminal_size().columns - 2  # as argparse
