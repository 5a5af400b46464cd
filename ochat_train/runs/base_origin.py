"""Where the base of a run came from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ochat_train.recipe.sections.model import ModelSettings


@dataclass(frozen=True, kw_only=True)
class BaseOrigin:
    """Where a run took its base from: a folder, or a model on the Hub; all None for random weights."""

    folder: str | None = None
    hub_id: str | None = None
    revision: str | None = None


def base_origin(settings: ModelSettings) -> BaseOrigin:
    """Where the base is loaded from: a folder of that name, else a model on the Hub, as in transformers."""
    return BaseOrigin() if settings.path is None else origin_of(settings.path, settings.revision)


def origin_of(place: str, revision: str | None = None) -> BaseOrigin:
    """A folder of that name, else a model on the Hub."""
    folder = Path(place)
    if folder.is_dir():
        return BaseOrigin(folder=str(folder.resolve()))
    return BaseOrigin(hub_id=place, revision=revision)
