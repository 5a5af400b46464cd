"""`ochat init`."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from data_pipeline.errors import UserError
from ochat_train.cli.arguments import add_gpus, positive
from ochat_train.cli.verb import Group, Verb
from ochat_train.system.messages import print_result


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "files", nargs="+", metavar="FILE", help="a .jsonl, .json or .parquet file, a folder or a pattern"
    )
    parser.add_argument("--base", metavar="HUB_ID|FOLDER", help="base model")
    parser.add_argument("--out", type=Path, metavar="RECIPE", help="recipe to write")
    parser.add_argument("--name", help="name of the run; default: the recipe's file name without suffix")
    parser.add_argument(
        "--template", metavar="NAME|FILE", help="prompt format, for example openchat_3.5; default: chosen by the base"
    )
    _add_classes(parser)
    parser.add_argument(
        "--format", action="append", default=[], metavar="FILE=FORMAT", help="format of a file; default: detected"
    )
    parser.add_argument(
        "--max-length", type=positive, metavar="TOKENS", help="longest conversation; default: chosen by the data"
    )
    parser.add_argument("--epochs", type=positive, help="default: chosen by the amount of data")
    add_gpus(parser, meaning="GPUs of a run, so that each step has packs for all of them (default 1)", default=None)
    parser.add_argument(
        "--bad-rows", choices=("error", "drop"), help="what `ochat prepare` does with rows that it cannot read"
    )
    parser.add_argument(
        "--adapter",
        choices=("none", "lora", "qlora"),
        help="train an adapter instead of all weights; default: none, or the first that fits where all weights do not "
        "fit on the GPU of this machine",
    )
    parser.add_argument("--sample-rows", type=positive, metavar="N", help="rows of a file to look at (default 20000)")
    parser.add_argument("--overwrite", action="store_true", help="replace the recipe if it exists")


def _add_classes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--class",
        action="append",
        default=[],
        dest="classes",
        metavar="NAME=CONDITION:REWARD",
        help="condition and reward of a class. A file's class is named like the file, unless a field of its rows names "
        "classes",
    )
    parser.add_argument(
        "--class-of", action="append", default=[], metavar="FILE=NAME", help="class of all rows of a file"
    )
    parser.add_argument(
        "--class-field", action="append", default=[], metavar="FILE=FIELD", help="field that names each row's class"
    )


def _run(options: argparse.Namespace) -> None:
    from ochat_train.init.init import init
    from ochat_train.init.options import Options

    values = {name: value for name, value in vars(options).items() if name in Options.__dataclass_fields__}
    is_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    out = init(Options(**values), ask=_ask if is_terminal else None, say=print_result)
    print_result(f"\nwritten: {out}\nnext: ochat check {shlex.quote(str(out))}")


def _ask(question: str) -> str:
    try:
        return input(question)
    except (EOFError, KeyboardInterrupt):
        print_result("")
        raise UserError("stopped", "nothing was written") from None


INIT = Verb(
    name="init",
    group=Group.DATA,
    summary="Look at data files and write a commented recipe for them and a base model. On a terminal, asks for what "
    "is missing.",
    example="ochat init data/gpt4.jsonl data/gpt35.jsonl --base mistralai/Mistral-7B-v0.1 --out recipes/mine.yaml "
    '--class "gpt4=GPT4 Correct:1.0" --class gpt35=GPT3:0.0',
    add_arguments=_add_arguments,
    run=_run,
)
