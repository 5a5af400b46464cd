"""What a caller of `train` may replace."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ochat_train.distributed.agreement import SIGHT_SECONDS
from ochat_train.distributed.engine import TrainingEngine
from ochat_train.distributed.ranks import stop_ranks
from ochat_train.planning.gradients import GROUP_ELEMENTS
from ochat_train.recipe.sections.tracking import TrackingSettings
from ochat_train.tracking.choice import chosen_trackers
from ochat_train.tracking.delivery import CLOSE_SECONDS, STOPPED_CLOSE_SECONDS
from ochat_train.tracking.protocol import Tracker
from ochat_train.training.step import Step


def unchanged(engine: TrainingEngine, step: Step) -> Step:
    """The step as it was planned."""
    return step


@dataclass(frozen=True, kw_only=True)
class Hooks:
    """Parts of a training that a caller may replace. Tests use them to inject real faults into real ranks."""

    before_step: Callable[[TrainingEngine, Step], Step] = unchanged
    """Called on every rank before each step; the step that it returns is taken."""

    trackers: Callable[[TrackingSettings], Sequence[Tracker]] = chosen_trackers
    """Makes the trackers of the run. Rank 0 calls it twice: once to report missing packages early."""

    leave_ranks: Callable[[], None] = stop_ranks
    """Ends the process group after the last step. Called on every rank."""

    close_seconds: float = CLOSE_SECONDS
    """Most seconds that trackers may take at the end of a run."""

    stopped_close_seconds: float = STOPPED_CLOSE_SECONDS
    """The same for a run that was stopped or failed."""

    sight_seconds: float = SIGHT_SECONDS
    """Most seconds until a new file must be visible on every host."""

    group_elements: int = GROUP_ELEMENTS
    """Most parameters that the optimizer updates at once."""
