"""The exceptions for what a user can fix: in the recipe or on the machine (`UserError`), or in one row (`RowError`)."""

from __future__ import annotations

from pathlib import Path


class UserError(Exception):
    """A problem in the user's input or surroundings. The command line prints `place: problem; remedy`, no traceback.

    place: key of the recipe, file and line, option, or package. problem: the value that was found and the rule that it
    breaks. remedy: what to do about it; empty where the problem says so itself.
    """

    exit_code = 2

    def __init__(self, place: str | Path, problem: str = "", remedy: str = "") -> None:
        super().__init__(str(place), problem, remedy)  # all of them, so that it can be sent between processes
        self.place, self.problem, self.remedy = str(place), problem, remedy

    def __str__(self) -> str:
        text = f"{self.place}: {self.problem}" if self.problem else self.place
        return f"{text}; {self.remedy}" if self.remedy else text


class RowError(Exception):
    """A row that is not a conversation. `reason` is the ledger's key; the message gives value, rule and remedy."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
