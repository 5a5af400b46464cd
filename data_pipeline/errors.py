"""The one exception for everything a user can mend: its message names place, value, rule and remedy."""

from __future__ import annotations


class UserError(Exception):
    """A problem in the user's input or surroundings. The command line prints the message without a traceback."""
