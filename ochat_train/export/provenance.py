"""Where a run's weights came from, and under which licence: what the base's own card says, or why it is unknown."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline.hub_cache import cached_file
from data_pipeline.hub_names import is_hub_id
from ochat_train.recipe.sections.model import ModelSettings
from ochat_train.runs.base_origin import BaseOrigin

_TIMEOUT_SECONDS = 10.0  # an export waits no longer for the Hub


@dataclass(frozen=True, kw_only=True)
class BaseModel:
    """name: as people know it, without folders; None for random weights. hub_id: only where the Hub or its cache knows
    it.

    license, license_name, license_link: as in its card's metadata; None where that does not say. why_unknown: why there
    is no licence; None where there is one.
    """

    name: str | None
    hub_id: str | None = None
    revision: str | None = None
    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None
    why_unknown: str | None = None


def find_base_model(settings: ModelSettings, origin: BaseOrigin | None) -> BaseModel:
    """The base of a run. Asks the Hub about a base from there, for ten seconds at most; never fails.

    origin: as the run recorded it, None where it did not. Without it a name is not looked up: `models/base` may have
    been a folder beside the run, and the Hub would answer for somebody else's model.
    """
    if settings.path is None:
        return BaseModel(
            name=None, why_unknown="the model was trained from random weights, so its author chooses a licence"
        )
    if origin is not None and origin.hub_id is not None:
        return _from_hub(origin.hub_id, origin.revision)
    folder = Path(settings.path if origin is None or origin.folder is None else origin.folder)
    if folder.is_dir():
        return _from_metadata(folder.resolve().name, None, None, _card_metadata(folder / "README.md"), "in its folder")
    if origin is None and is_hub_id(settings.path):
        reason = "the run did not record whether its base was a folder or a model of the Hub"
        return BaseModel(name=settings.path, why_unknown=reason)
    return BaseModel(name=folder.name, why_unknown="the folder of the base model no longer exists")


def _from_hub(name: str, revision: str | None) -> BaseModel:
    metadata = _hub_metadata(name, revision)
    if metadata is None:
        return BaseModel(name=name, why_unknown="the base model's card could not be read from the Hub")
    return _from_metadata(name, name, revision, metadata, "on the Hub")


def _from_metadata(
    name: str, hub_id: str | None, revision: str | None, metadata: dict[str, Any], place: str
) -> BaseModel:
    license, license_name, license_link = (
        _text(metadata.get(key)) for key in ("license", "license_name", "license_link")
    )
    return BaseModel(
        name=name,
        hub_id=hub_id,
        revision=revision,
        license=license,
        license_name=license_name,
        license_link=license_link,
        why_unknown=None if license else f"the base model's card {place} names none",
    )


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value.strip() else None


def _hub_metadata(name: str, revision: str | None) -> dict[str, Any] | None:
    """The metadata of a model's card on the Hub, or in the Hub's cache; None where neither has the model."""
    from huggingface_hub import HfApi

    try:
        card = HfApi().model_info(name, revision=revision, timeout=_TIMEOUT_SECONDS).card_data
        return card.to_dict() if card is not None else {}
    except Exception:  # no network, no token for it, no such model
        pass
    if (card_file := cached_file(name, "README.md", revision=revision)) is not None:
        return _card_metadata(card_file)
    return {} if cached_file(name, "config.json", revision=revision) is not None else None


def _card_metadata(path: Path) -> dict[str, Any]:
    from huggingface_hub import ModelCard

    try:
        metadata: dict[str, Any] = ModelCard(
            path.read_text(encoding="utf-8"), ignore_metadata_errors=True
        ).data.to_dict()
        return metadata
    except Exception:  # no card, or not YAML
        return {}
