"""What is wrong with a recipe, in a user's words."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel

from data_pipeline.errors import Problem
from data_pipeline.settings import BASELINE_RULE
from data_pipeline.text_rules import did_you_mean
from ochat_train.recipe.secrets import SECRET_KEY
from ochat_train.recipe.sections import CHECKPOINTING_RULE, NUMBER_OR_AUTO, Recipe
from ochat_train.recipe.strict_yaml import COMMAND_LINE, Document, KeyPath


def describe(problem: Any, document: Document, path: Path) -> Problem:
    """One problem: place and key, what is wrong, and the nearest valid key."""
    kind = problem["type"]
    location: KeyPath = problem["loc"] if kind == "extra_forbidden" else without_union_parts(problem["loc"])
    known = location
    while known and known not in document.lines:
        known = known[:-1]
    line = document.lines.get(known, 1)
    origin = "--set" if line == COMMAND_LINE else f"{path}:{line}:"
    place = f"{origin} {'.'.join(map(str, location)) or 'recipe'}"
    if kind == "extra_forbidden":
        keys = _keys_of(location[:-1])
        hint = did_you_mean(str(location[-1]), keys) or f"known keys: {', '.join(keys)}"
        return Problem(place=place, problem="unknown key", remedy=hint)
    if kind == "missing":
        return Problem(place=place, problem="missing", remedy=_description_of(location) or "add it")
    message = _PLAIN_MESSAGES.get(kind) or problem["msg"].removeprefix("Value error, ")
    if location != problem["loc"]:  # each type that was tried reports; as one rule they are one problem
        message = _UNION_RULES[_field_at(location).annotation]
    is_one_value = getattr(_field_at(location) if location else None, "annotation", None) in _UNION_RULES
    if kind == "value_error" and isinstance(problem["input"], dict | BaseModel) and not is_one_value:
        return Problem(place=place, problem=message)
    shown = "***" if SECRET_KEY.search(str(location[-1])) else repr(problem["input"])
    shown = shown if len(shown) <= 60 else shown[:57] + "..."
    return Problem(place=place, problem=f"{shown}: {message[0].lower()}{message[1:]}")


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


_UNION_RULES: dict[Any, str] = {
    float | str: NUMBER_OR_AUTO,
    float | str | None: BASELINE_RULE,
    str | dict[str, Any]: CHECKPOINTING_RULE,
    bool | Literal["online", "offline"]: "expected `true`, `false`, `online` or `offline`",
}


def without_union_parts(location: KeyPath) -> KeyPath:
    """The place without what pydantic adds after a key of several types (the type that it tried)."""
    for end in range(1, len(location) + 1):
        field = _field_at(location[:end])
        if field is not None and field.annotation in _UNION_RULES:
            return location[:end]
    return location


def _field_at(location: KeyPath) -> Any:
    """The field that a key path names, None for a place inside a free mapping."""
    section = _section_at(location[:-1])
    fields = section.model_fields.items() if section else ()
    return next((field for name, field in fields if location[-1] in (name, field.alias)), None)


def _section_at(location: KeyPath) -> type[BaseModel] | None:
    """The section that a key path leads to; names of classes and numbers of sources are walked over."""
    section: type[BaseModel] | None = Recipe
    entries: type[BaseModel] | None = None  # what a list or mapping of sections holds, while its index is next
    for key in location:
        if entries is not None:
            section, entries = entries, None
            continue
        fields = section.model_fields.items() if section else ()
        annotation: Any = next((field.annotation for name, field in fields if key in (name, field.alias)), None)
        inner = [part for part in get_args(annotation) if _is_section(part)]
        is_optional = type(None) in get_args(annotation)
        section = annotation if _is_section(annotation) else inner[0] if inner and is_optional else None
        entries = inner[0] if inner and not is_optional else None
    return section


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _keys_of(location: KeyPath) -> list[str]:
    section = _section_at(location)
    return [field.alias or name for name, field in section.model_fields.items()] if section else []


def _description_of(location: KeyPath) -> str:
    section = _section_at(location[:-1])
    if section is None:
        return ""
    return next(
        (f.description or "" for name, f in section.model_fields.items() if location[-1] in (name, f.alias)), ""
    )
