"""Which trackers a recipe asks for, and whether they are installed."""

from __future__ import annotations

import importlib.util

from data_pipeline.errors import UserError
from ochat_train.recipe.sections.tracking import TrackingSettings
from ochat_train.tracking.kind import TrackerKind
from ochat_train.tracking.protocol import Tracker
from ochat_train.tracking.tensorboard_tracker import TENSORBOARD
from ochat_train.tracking.wandb_tracker import WANDB

TRACKER_KINDS: tuple[TrackerKind, ...] = (TENSORBOARD, WANDB)


def chosen_trackers(settings: TrackingSettings) -> list[Tracker]:
    """The trackers of a recipe. Raises UserError for one that is not installed."""
    wanted = [kind for kind in TRACKER_KINDS if kind.is_wanted(settings)]
    for kind in wanted:
        if importlib.util.find_spec(kind.package) is None:
            value = str(getattr(settings, kind.key)).lower()
            raise UserError(
                f"tracking.{kind.key}: {value}",
                f"the package {kind.package} is not installed",
                f"run `pip install {kind.package}`, or turn it off",
            )
    return [kind.make(settings) for kind in wanted]
