"""How `ochat` ends: the exit codes, and the exceptions that carry them."""

from __future__ import annotations

from collections.abc import Mapping

from data_pipeline.errors import ReportedError, UserError

DONE = 0
BUG = 1  # Python's own, with a traceback
USER_ERROR = UserError.exit_code  # 2: something the user can fix, such as recipe, data, disk or a loss that diverges
STOPPED = 75  # stopped by a signal, nothing is lost: start again to continue (EX_TEMPFAIL of sysexits.h)
LOST_RANKS = 76  # another rank died or hangs: start again to continue from the newest checkpoint
NOT_PUSHED = 77  # trained to the end, but the model is not on the Hub: start again, or use `ochat push`
UNANSWERED = 78  # `ochat eval` has results, but more questions without an answer than were allowed


class StoppedBySignalError(ReportedError):
    """Stopped on request. A training has written its checkpoint, or is complete and only not on the Hub yet."""

    exit_code = STOPPED


class LostRanksError(ReportedError):
    """Another rank no longer answers. Every rank that is left says so: rank 0 may be the lost one."""

    exit_code = LOST_RANKS
    each_process_prints = True


class NotPushedError(ReportedError):
    """The training is complete and on disk, but its model is not on the Hub. Raised on rank 0."""

    exit_code = NOT_PUSHED


class UnansweredError(ReportedError):
    """Results are there, and some questions have no answer after all tries."""

    exit_code = UNANSWERED


class OneRankError(UserError):
    """A problem that the user can fix and that only this rank has found, so that no other rank prints it."""

    each_process_prints = True


def found_on_host(error: UserError, environment: Mapping[str, str], *, host: str) -> UserError:
    """An error that every rank of a host finds, as this rank should raise it.

    Other hosts may have other files than the host of rank 0, so one rank of each speaks for it.

    environment: has the launcher's RANK and LOCAL_RANK, if there is a launcher.
    """
    speaks_for_host = int(environment.get("RANK", "0")) > 0 and environment.get("LOCAL_RANK") == "0"
    return OneRankError(host, str(error)) if speaks_for_host else error
