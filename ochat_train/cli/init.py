"""`ochat init`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from data_pipeline.errors import UserError
from ochat_train.cli.arguments import Verb, positive


def add_init(verb: Verb) -> None:
    """Add the verb and its arguments."""
    init = verb(
        "init",
        _init,
        "Write a commented recipe for a base and data files, after a look at the files. On a terminal it asks.",
        "ochat init data/gpt4.jsonl data/gpt35.jsonl --base mistralai/Mistral-7B-v0.1 --out recipes/mine.yaml "
        '--class "gpt4=GPT4 Correct:1.0" --class gpt35=GPT3:0.0',
    )
    init.add_argument(
        "files", nargs="+", metavar="FILE", help="a .jsonl, .json or .parquet file, a folder or a pattern"
    )
    init.add_argument("--base", metavar="HUB_ID|FOLDER", help="base model")
    init.add_argument("--out", type=Path, metavar="RECIPE", help="recipe to write")
    init.add_argument("--name", help="name of the run; default: the recipe's, without suffix")
    init.add_argument("--template", help="prompt format, for example openchat_3.5; default: by the base")
    init.add_argument(
        "--class",
        action="append",
        default=[],
        dest="classes",
        metavar="NAME=CONDITION:REWARD",
        help="condition and reward of a class; a file's class has the file's name, unless a field of its rows names "
        "classes",
    )
    init.add_argument(
        "--class-of", action="append", default=[], metavar="FILE=NAME", help="class of all rows of a file"
    )
    init.add_argument(
        "--class-field", action="append", default=[], metavar="FILE=FIELD", help="field that names each row's class"
    )
    init.add_argument(
        "--format", action="append", default=[], metavar="FILE=FORMAT", help="format of a file; default: found"
    )
    init.add_argument(
        "--max-length", type=positive, metavar="TOKENS", help="longest conversation; default: by the data"
    )
    init.add_argument("--epochs", type=positive, help="default: by the amount of data")
    init.add_argument("--gpus", type=positive, help="GPUs of a run, so that a step has packs for all (default 1)")
    init.add_argument(
        "--bad-rows", choices=("error", "drop"), help="what `ochat prepare` does with rows that it cannot read"
    )
    init.add_argument("--sample-rows", type=positive, metavar="N", help="rows of a file to look at (default 20000)")
    init.add_argument("--overwrite", action="store_true", help="replace the recipe if it is there")


def _init(options: argparse.Namespace) -> None:
    from ochat_train.init.run import Options, init

    values = {name: value for name, value in vars(options).items() if name in Options.__dataclass_fields__}
    is_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    out = init(Options(**values), ask=_ask if is_terminal else None, say=print)
    print(f"\nwritten: {out}\nnext: ochat check {out}")


def _ask(question: str) -> str:
    try:
        return input(question)
    except (EOFError, KeyboardInterrupt):
        print()
        raise UserError("stopped; nothing was written") from None
