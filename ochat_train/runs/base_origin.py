"""Where the base of a run came from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ochat_train.recipe.sections import ModelSettings


@dataclass(frozen=True, kw_only=True)
class BaseOrigin:
    """Where a run took its base from: a folder, or a model of the Hub; everything is None for random weights."""

    folder: str | None = None
    hub_id: str | None = None
    revision: str | None = None


def base_origin(settings: ModelSettings) -> BaseOrigin:
    """Where the base is loaded from, here and now: a folder comes before a model of the Hub, as transformers has it."""
    if settings.path is None:
        return BaseOrigin()
    folder = Path(settings.path)
    if folder.is_dir():
        return BaseOrigin(folder=str(folder.resolve()))
    return BaseOrigin(hub_id=settings.path, revision=settings.revision)
