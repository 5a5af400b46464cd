"""Keys that look like secrets, which a recipe may not hold."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from data_pipeline.errors import Problem
from ochat_train.recipe.strict_yaml import COMMAND_LINE, Document, KeyPath

SECRET_KEY = re.compile(
    r"(^|_)(api_?key|access_?key|password|passwd|secret|credentials?|(hf|hub|wandb|auth|access)_token)$", re.I
)


def secret_places(value: Any, place: KeyPath = ()) -> list[KeyPath]:
    """Places of keys that look like a secret: recipes are copied into run folders, checkpoints, exports and
    trackers.
    """
    pairs = (
        list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    )
    found = [(*place, key) for key, _ in pairs if isinstance(key, str) and SECRET_KEY.search(key)]
    return found + [inner for key, item in pairs for inner in secret_places(item, (*place, key))]


def secret_problem(place: KeyPath, document: Document, path: Path) -> Problem:
    """What to say of a key that looks like a secret."""
    line = document.lines.get(place, 1)
    origin = "--set" if line == COMMAND_LINE else f"{path}:{line}:"
    return Problem(
        place=f"{origin} {'.'.join(map(str, place))}",
        problem="secrets do not belong in a recipe, which is copied into runs and exports",
        remedy="set HF_TOKEN or WANDB_API_KEY in the environment",
    )
