"""How `ochat train` ends: exit codes, and the exceptions that lead to them."""

from __future__ import annotations

from data_pipeline.errors import UserError

DONE = 0
BUG = 1  # Python's own, with a traceback
USER_ERROR = 2  # something a user can mend: recipe, data, disk, a loss that is not finite
STOPPED = 75  # stopped by a signal, with nothing lost: start again to go on (EX_TEMPFAIL of sysexits.h)
LOST_RANKS = 76  # another rank died or hangs; start again to go on from the newest checkpoint
NOT_PUSHED = 77  # trained to the end, but the model is not on the Hub; start again, or `ochat push`


class StoppedBySignalError(Exception):
    """Asked to stop: a run after its checkpoint, or trained to the end and not on the Hub yet; other work, as far as it
    is.
    """


class LostRanksError(Exception):
    """Another rank does not answer any more."""


class NotPushedError(Exception):
    """The training is done and on the disk, and its model is not on the Hub."""


class OneRankError(UserError):
    """A problem that a user can mend and that this rank alone has found; every rank prints its own."""
