"""What a verb of `ochat` is."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum


class Group(Enum):
    """What a verb is for: a heading of `ochat --help` and docs/command-line.md, in this order."""

    DATA = "prepare data"
    LOOK = "look before training"
    TRAIN = "train, and see what came of it"
    USE = "export, serve and evaluate"
    SET_UP = "set up this machine and your editor"


@dataclass(frozen=True, kw_only=True)
class Verb:
    """One verb. Each has its own file in this folder and a row in `main.VERBS`.

    name: as typed. group: its heading in `ochat --help`. summary: one sentence, for `--help` and docs/command-line.md.
    example: a command line.
    add_arguments: adds the verb's own arguments to its parser; `main` adds those of every verb.
    run: reads the arguments, calls one function of another package and prints its result. Raises ReportedError.
    takes_recipe: whether the verb has the arguments RECIPE and `--set`.
    writes_log: whether `--log-file` is the verb's own, and not what `main` adds all that is printed to.
    """

    name: str
    group: Group
    summary: str
    example: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], None]
    takes_recipe: bool = False
    writes_log: bool = False
