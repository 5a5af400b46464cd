"""`ochat inspect`."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from ochat_train.cli.arguments import add_json
from ochat_train.cli.verb import Group, Verb
from ochat_train.system.messages import print_marked, reader_may_leave


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dir", type=Path, help="prepared dataset (`data.prepared_dir` of the recipe)")
    parser.add_argument("--split", choices=("train", "validation", "conditions"), default="train", help="part to show")
    parser.add_argument(
        "--rows",
        type=_row_range,
        metavar="A:B",
        help="rows A to B-1 of those that match the options below; 0:0 shows no row (default: the first few of "
        "every class; of those that match: 0:3, or 0:20 with --html)",
    )
    parser.add_argument("--class", dest="class_name", metavar="NAME", help="only rows of this class")
    parser.add_argument("--id", dest="conversation_id", metavar="ID", help="only the conversation with this id")
    parser.add_argument("--find", metavar="TEXT", help="only rows that contain this text")
    parser.add_argument("--tokens", action="store_true", help="show every token with its id and weight")
    parser.add_argument(
        "--color",
        choices=("auto", "always", "never"),
        default="auto",
        help="auto (the default): on a terminal, unless NO_COLOR is set",
    )
    form = parser.add_mutually_exclusive_group()
    add_json(form, printed="one JSON line per row")
    form.add_argument("--html", type=Path, metavar="FILE", help="write one HTML page instead, readable without network")


def _row_range(text: str) -> slice:
    start, separator, end = text.partition(":")
    if not separator or not all(part == "" or part.isdigit() for part in (start, end)):
        raise argparse.ArgumentTypeError(f"{text!r} is not A:B, for example 0:10")
    if end and int(end) < int(start or 0):
        raise argparse.ArgumentTypeError(f"{text!r} ends before it begins")
    return slice(int(start or 0), int(end) if end else None)


@reader_may_leave()
def _run(options: argparse.Namespace) -> None:
    from ochat_train.report.inspect import inspect, wants_color

    is_terminal = sys.stdout is not None and sys.stdout.isatty()
    for line in inspect(
        options.dir,
        options.split,
        rows=options.rows,
        class_name=options.class_name,
        conversation_id=options.conversation_id,
        find=options.find,
        with_tokens=options.tokens,
        color=wants_color(options.color, is_terminal=is_terminal, environment=os.environ),
        json_lines=options.json,
        html=options.html,
    ):
        print_marked(line)


INSPECT = Verb(
    name="inspect",
    group=Group.LOOK,
    summary="Show prepared rows, the class table and lengths.",
    example="ochat inspect data/quickstart/prepared --split train --rows 0:3 --class expert",
    add_arguments=_add_arguments,
    run=_run,
)
