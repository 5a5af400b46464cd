"""The part of a recipe that may be published with a model: how it was trained, and not where, nor who watched.

Each field says itself whether it is public (`data_pipeline.section.setting`). This file also takes the folders of this
machine out of public values.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data_pipeline.hub_names import is_hub_id
from data_pipeline.section import chosen_values
from ochat_train.recipe.recipe import Recipe

_DEEPSPEED_MONITORS = {"tensorboard", "wandb", "comet", "csv_monitor"}  # names of teams, folders


def public_recipe(recipe: Recipe) -> dict[str, Any]:
    """The public values of a recipe, by key. Of a path on this machine the last name is left; Hub ids stay whole."""
    values = chosen_values(Recipe, recipe.model_dump(mode="json", by_alias=True), lambda flags: flags.is_public)
    for settings, source in zip(recipe.data.sources, values["data"]["sources"], strict=True):
        if not settings.is_on_hub:
            source["path"] = _last_name(source["path"])
    model, deepspeed, validation = values["model"], values["deepspeed"], values["validation"]
    for key in ("path", "tokenizer"):
        if model[key] is not None and not is_hub_id(model[key]):
            model[key] = _last_name(model[key])
    model["config"] = without_paths(model["config"])
    raw = {key: value for key, value in deepspeed["config"].items() if key not in _DEEPSPEED_MONITORS}
    deepspeed["config"] = without_paths(raw)
    if validation["questions"] is not None:
        validation["questions"] = _last_name(validation["questions"])
    for benchmark in validation["benchmarks"]:
        if benchmark["data"] is not None:
            benchmark["data"] = _last_name(benchmark["data"])
    return values


def without_paths(value: Any) -> Any:
    """Values of another program's configuration, whose keys are not known here; what looks like a path is cut."""
    if isinstance(value, dict):
        return {key: without_paths(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_paths(item) for item in value]
    return _last_name(value) if isinstance(value, str) else value


def _last_name(path: str) -> str:
    return Path(path.replace("\\", "/")).name
