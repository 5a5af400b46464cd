"""What the project knows about a tracker before it is used: one record each, in the tracker's own file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ochat_train.recipe.sections.tracking import TrackingSettings
from ochat_train.tracking.protocol import Tracker


@dataclass(frozen=True, kw_only=True)
class TrackerKind:
    """A tracker that recipes can ask for.

    key: field of `tracking:` in a recipe that turns it on, off by default. package: what it imports. extra: of this
    project, installs the package. is_wanted: whether a recipe turns it on. make: the tracker of a run.
    """

    key: str
    package: str
    extra: str
    is_wanted: Callable[[TrackingSettings], bool]
    make: Callable[[TrackingSettings], Tracker]
