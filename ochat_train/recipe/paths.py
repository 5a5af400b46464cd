"""`~` and `${NAME}` in keys that hold no path, where nothing replaces them."""

from __future__ import annotations

from typing import Any

from data_pipeline.errors import Problem
from data_pipeline.path_keys import is_path, looks_like_a_path
from data_pipeline.section import ANY, all_fields
from ochat_train.recipe.recipe import Recipe
from ochat_train.recipe.strict_yaml import Document, KeyPath, entries

# Text for the model and a regular expression may hold both and mean what they say.
_FREE_TEXT = (("validation", "prompts"), ("validation", "answer_pattern"), ("model", "template_variables"))


def misplaced_paths(value: Any) -> list[KeyPath]:
    """Places of texts that would be expanded if their keys held paths."""
    allowed = [*_FREE_TEXT, *(place for place, field in all_fields(Recipe) if is_path(field))]
    texts = [(place, text) for place, text in entries(value) if isinstance(text, str)]
    return [place for place, text in texts if looks_like_a_path(text) and not _is_in(place, allowed)]


def misplaced_problem(place: KeyPath, document: Document) -> Problem:
    """What to say of such a text."""
    keys = ", ".join(".".join(key) for key, field in all_fields(Recipe) if is_path(field))
    problem = f"holds no path, so `~` and `${{NAME}}` are not replaced here (they are in {keys})"
    return Problem(place=document.place(place), problem=problem, remedy="write the value out")


def _is_in(place: KeyPath, allowed: list[tuple[str, ...]]) -> bool:
    return any(
        len(place) >= len(key) and all(part in (ANY, step) for part, step in zip(key, place, strict=False))
        for key in allowed
    )
