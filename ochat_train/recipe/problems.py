"""What is wrong with a recipe, in a user's words."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from data_pipeline.errors import Problem
from data_pipeline.section import ANY, Section, all_fields
from data_pipeline.text_rules import did_you_mean
from ochat_train.recipe.recipe import Recipe
from ochat_train.recipe.secrets import SECRET_KEY
from ochat_train.recipe.strict_yaml import Document, KeyPath

_LONGEST_VALUE = 60  # characters of a value that a message shows
_PLAIN_MESSAGES = {
    "bool_type": "expected `true` or `false`",
    "float_type": "expected a number",
    "int_type": "expected a whole number",
    "string_type": "expected text; put it in quotes",
    "list_type": "expected a list",
    "dict_type": "expected a mapping",
    "model_type": "expected a section (a mapping of keys)",
    "finite_number": "expected a finite number",
}


def rule_broken(problem: Any) -> str:
    """The rule in one of pydantic's problems: the text of our own ValueError, or pydantic's words."""
    return str(problem["ctx"]["error"] if problem["type"] == "value_error" else problem["msg"])


def describe(problem: Any, document: Document, *, root: type[Section] = Recipe) -> Problem:
    """One of pydantic's problems: place and key, the value and what is wrong, and the nearest valid key.

    root: what the document was read as.
    """
    kind, location, value = problem["type"], problem["loc"], problem["input"]
    place = document.place(location)
    if kind == "extra_forbidden":
        keys = [key for key, _ in _fields_beside(location, root)]
        elsewhere = _keys_named(str(location[-1]), root)
        hint = did_you_mean(str(location[-1]), keys) or elsewhere or f"known keys: {', '.join(keys)}"
        return Problem(place=place, problem="unknown key", remedy=hint)
    if kind == "missing":
        description = dict(_fields_beside(location, root))[location[-1]].description
        return Problem(place=place, problem="missing", remedy=description or "add it")
    message = _PLAIN_MESSAGES.get(kind) or rule_broken(problem)
    if kind == "value_error" and isinstance(value, dict | BaseModel):  # a rule over several keys: no need to show all
        return Problem(place=place, problem=message)
    shown = "***" if SECRET_KEY.search(str(location[-1])) else repr(value)
    if len(shown) > _LONGEST_VALUE:
        shown = f"{shown[: _LONGEST_VALUE - 3]}..."
    return Problem(place=place, problem=f"{shown}: {message[0].lower()}{message[1:]}")


def _keys_named(name: str, root: type[Section]) -> str:
    """A hint for a key that other sections have: `epochs` for `train.epochs`. Empty where none has it."""
    paths = [".".join(map(str, path)) for path, _ in all_fields(root) if path[-1] == name and ANY not in path]
    return f"did you mean {' or '.join(f'`{path}`' for path in paths)}?" if paths else ""


def _fields_beside(location: KeyPath, root: type[Section]) -> Iterator[tuple[str, FieldInfo]]:
    """Key and declaration of all fields of the section that a key path leads into."""
    for (*section, key), field in all_fields(root):
        if len(section) == len(location) - 1 and all(
            part in (ANY, step) for part, step in zip(section, location, strict=False)
        ):
            yield key, field
