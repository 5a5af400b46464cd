"""`ochat inspect`."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from ochat_train.cli.arguments import Verb


def add_inspect(verb: Verb) -> None:
    """Add the verb and its arguments."""
    inspect = verb(
        "inspect",
        _inspect,
        "Show prepared rows, the class table and lengths.",
        "ochat inspect data/quickstart/prepared --split train --rows 0:3 --class expert",
    )
    inspect.add_argument("dir", type=Path, help="prepared dataset (`data.prepared_dir` of the recipe)")
    inspect.add_argument("--split", choices=("train", "validation", "conditions"), default="train")
    inspect.add_argument(
        "--rows",
        type=_row_range,
        metavar="A:B",
        help="rows A to B-1, of those that match the options below (default 0:3; 0:20 with --html; 0:0 shows no row)",
    )
    inspect.add_argument("--class", dest="class_name", metavar="NAME", help="only rows of this class")
    inspect.add_argument("--id", dest="conversation_id", metavar="ID", help="only the conversation with this id")
    inspect.add_argument("--find", metavar="TEXT", help="only rows that hold this text")
    inspect.add_argument("--tokens", action="store_true", help="show every token with its id and weight")
    inspect.add_argument(
        "--color",
        choices=("auto", "always", "never"),
        default="auto",
        help="auto (the default): on a terminal, unless NO_COLOR is set",
    )
    form = inspect.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print one JSON line per row")
    form.add_argument("--html", type=Path, metavar="FILE", help="write one HTML page instead, readable without network")


@contextlib.contextmanager
def _reader_may_leave() -> Iterator[None]:
    """`ochat inspect ... | head` is no failure."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        sys.stdout = None  # type: ignore[assignment]  # so that Python does not complain at its end


@_reader_may_leave()
def _inspect(options: argparse.Namespace) -> None:
    from data_pipeline.look.prepared import Inspection, Selection
    from data_pipeline.text_rules import visible

    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal that cannot show a character of the data gets its number
        sys.stdout.reconfigure(errors="backslashreplace")
    rows = options.rows or slice(0, 20 if options.html else 3)
    selection = Selection(
        start=rows.start,
        stop=rows.stop,
        class_name=options.class_name,
        conversation_id=options.conversation_id,
        find=options.find,
    )
    inspection = Inspection(options.dir, options.split)
    if options.json:
        for number in inspection.select(selection):
            print(visible(json.dumps(inspection.document(number), ensure_ascii=False)))
    elif options.html:
        from ochat_train.report.inspect_page import write_inspect_page

        write_inspect_page(inspection, selection, options.html, with_tokens=options.tokens)
        print(options.html)
    else:
        from data_pipeline.look.text import report

        is_for_people = sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        color = options.color == "always" or (options.color == "auto" and is_for_people)
        for line in report(inspection, selection, color=color, with_tokens=options.tokens):
            print(line)


def _row_range(text: str) -> slice:
    start, separator, end = text.partition(":")
    if not separator or not all(part == "" or part.isdigit() for part in (start, end)):
        raise argparse.ArgumentTypeError(f"{text!r} is not A:B, for example 0:10")
    if end and int(end) < int(start or 0):
        raise argparse.ArgumentTypeError(f"{text!r} ends before it begins")
    return slice(int(start or 0), int(end) if end else None)
