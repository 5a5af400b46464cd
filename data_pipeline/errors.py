"""The one exception for everything a user can mend: its message names place, value, rule and remedy."""

from __future__ import annotations


class UserError(Exception):
    """A problem in the user's input or surroundings. The command line prints the message without a traceback."""


class RowError(Exception):
    """A row that is not a conversation. `reason` is the ledger's key; the message gives value, rule and remedy."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def duplicate_id(identifier: str) -> RowError:
    """The second conversation of a source with an id."""
    return RowError("duplicate_id", f"id `{identifier}` stands twice in this source; make it unique")
