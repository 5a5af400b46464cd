"""Which trackers a recipe asks for, and whether they are installed."""

from __future__ import annotations

import importlib.util

from data_pipeline.errors import UserError
from ochat_train.recipe.sections import TrackingSettings
from ochat_train.tracking.protocol import Tracker
from ochat_train.tracking.tensorboard_tracker import TensorBoardTracker
from ochat_train.tracking.wandb_tracker import WandbTracker


def chosen_trackers(settings: TrackingSettings) -> list[Tracker]:
    """The trackers of a recipe. Raises UserError for one that is not installed."""
    trackers: list[Tracker] = []
    if settings.tensorboard:
        _check_installed("tensorboard", f"tracking.tensorboard: {_yaml(settings.tensorboard)}")
        trackers.append(TensorBoardTracker())
    if settings.wandb:
        _check_installed("wandb", f"tracking.wandb: {_yaml(settings.wandb)}")
        trackers.append(WandbTracker(settings))
    return trackers


def _check_installed(package: str, place: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise UserError(
            place, f"the package {package} is not installed", f"run `pip install {package}`, or turn it off"
        )


def _yaml(value: bool | str) -> str:
    return str(value).lower()
