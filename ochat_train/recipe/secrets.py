"""Keys that look like secrets. A recipe may not hold them: it is copied into runs, checkpoints, exports, trackers."""

from __future__ import annotations

import re
from typing import Any

from data_pipeline.errors import Problem
from ochat_train.recipe.strict_yaml import Document, KeyPath, entries

SECRET_KEY = re.compile(
    r"(^|_)(api_?key|access_?key|password|passwd|secret|credentials?|(hf|hub|wandb|auth|access)_token)$", re.I
)


def secret_places(value: Any) -> list[KeyPath]:
    """Places of keys that look like a secret, at any depth."""
    return [place for place, _ in entries(value) if SECRET_KEY.search(str(place[-1]))]


def secret_problem(place: KeyPath, document: Document) -> Problem:
    """What to say of a key that looks like a secret."""
    return Problem(
        place=document.place(place),
        problem="secrets do not belong in a recipe, which is copied into runs and exports",
        remedy="set HF_TOKEN or WANDB_API_KEY in the environment",
    )
