"""Arguments that several verbs share, and how their values are read."""

from __future__ import annotations

import argparse
import re
from pathlib import Path


def add_common(parser: argparse.ArgumentParser) -> None:
    """The arguments of every verb: how much is printed, and where."""
    parser.add_argument("--debug", action="store_true", help="show a traceback with an error")
    parser.add_argument("--quiet", action="store_true", help="print results, warnings and errors, but no progress")
    parser.add_argument(
        "--log-file", type=Path, metavar="FILE", help="also add everything that is printed to this file, with times"
    )


def add_recipe(parser: argparse.ArgumentParser) -> None:
    """RECIPE and `--set`: `options.recipe` and `options.overrides`, as `load_recipe` takes them."""
    parser.add_argument("recipe", type=Path, help="recipe file (YAML)")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        dest="overrides",
        help="change a value of the recipe; may be given several times",
    )


def add_json(parser: argparse._ActionsContainer, *, printed: str = "one JSON document") -> None:
    """`--json`. printed: what it prints."""
    parser.add_argument("--json", action="store_true", help=f"print {printed}")


def add_gpus(parser: argparse.ArgumentParser, *, meaning: str, default: int | None) -> None:
    """`--gpus`, a number of GPUs."""
    parser.add_argument("--gpus", type=positive, default=default, help=meaning)


def add_price(parser: argparse.ArgumentParser) -> None:
    """`--price`, of a GPU-hour."""
    parser.add_argument(
        "--price",
        type=positive_number,
        metavar="X",
        help="price of one GPU for one hour, in your currency: also show what the GPU-hours cost",
    )


def positive(text: str) -> int:
    """A whole number of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not 1 or more")
    return value


def whole_number(text: str) -> int:
    """A whole number of at least 0."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{value} is below 0")
    return value


def positive_number(text: str) -> float:
    """A number above 0."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def number_from_zero(text: str) -> float:
    """A number of at least 0."""
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 0")
    return value


def share(text: str) -> float:
    """A share above 0, at most 1."""
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not between 0 and 1, for example 0.5 for 50 %")
    return value


def regular_expression(text: str) -> str:
    """A regular expression of Python."""
    try:
        re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no regular expression: {error}") from None
    return text


def step(text: str) -> int | str:
    """A step, or `best`."""
    return text if text == "best" else positive(text)


def file_size(text: str) -> str:
    """A size with its unit, as `huggingface_hub` takes it."""
    if not re.fullmatch(r"[1-9][0-9]*(KB|MB|GB)", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size, for example 500MB or 5GB")
    return text
