"""What a verb of `ochat` is."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Verb:
    """One verb. Each has its own file in this folder and a row in `main.VERBS`.

    name: as typed. summary: one sentence, for `--help` and docs/command-line.md. example: a command line.
    add_arguments: adds the verb's own arguments to its parser; `main` adds those of every verb.
    run: reads the arguments, calls one function of another package and prints its result. Raises ReportedError.
    takes_recipe: whether the verb has the arguments RECIPE and `--set`.
    """

    name: str
    summary: str
    example: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], None]
    takes_recipe: bool = False
