"""The exceptions for what a user can fix: in the recipe or on the machine (`UserError`), or in one row (`RowError`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import indent
from typing import ClassVar


class ReportedError(Exception):
    """Ends the command with its message and an exit code, without a traceback.

    exit_code: `ochat_train/system/exits.py` explains the codes.
    each_process_prints: if several processes work together, each that raises this prints it. Otherwise all of them
    raise the same, and rank 0 prints it for all.
    """

    exit_code: ClassVar[int]
    each_process_prints: ClassVar[bool] = False


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What a UserError says. place: key of the recipe, file and line, option, or package. problem: the value that was
    found and the rule that it breaks. remedy: what to do about it; empty where the problem says so itself.
    """

    place: str
    problem: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.place}: {self.problem}{f'; {self.remedy}' if self.remedy else ''}"


class UserError(ReportedError):
    """A problem in the user's input or surroundings, printed as `place: problem; remedy`: see `Problem`."""

    exit_code = 2

    def __init__(self, place: str | Path, problem: str, remedy: str = "") -> None:
        super().__init__(str(place), problem, remedy)  # all of them, so that it can be sent between processes
        self.place, self.problem, self.remedy = str(place), problem, remedy

    def __str__(self) -> str:
        return str(Problem(place=self.place, problem=self.problem, remedy=self.remedy))

    @property
    def problems(self) -> tuple[Problem, ...]:
        """Each problem on its own: this one, or those that `UserErrors` holds."""
        return (Problem(place=self.place, problem=self.problem, remedy=self.remedy),)


class UserErrors(UserError):
    """Several problems found at once, printed as a line `place: problem` with one indented line for each of them and
    the common remedy below.
    """

    def __init__(self, place: str | Path, problem: str, problems: Sequence[Problem], remedy: str = "") -> None:
        super().__init__(place, problem, remedy)
        self.args = (str(place), problem, tuple(problems), remedy)  # what unpickling calls this with
        self._problems = tuple(problems)

    def __str__(self) -> str:
        lines = [f"{self.place}: {self.problem}", *(indent(str(problem), "  ") for problem in self._problems)]
        return "\n".join([*lines, self.remedy] if self.remedy else lines)

    @property
    def problems(self) -> tuple[Problem, ...]:
        """Each problem on its own."""
        return self._problems


class RowError(Exception):
    """A row that is not a conversation. `reason` is the ledger's key; the message gives value, rule and remedy."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(reason, message)  # both, so that it can be sent between processes
        self.reason, self.message = reason, message

    def __str__(self) -> str:
        return self.message
