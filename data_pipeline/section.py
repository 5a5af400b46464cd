"""Sections of a recipe: how strict they are, and what each of their fields declares.

    class TrainSettings(Section):
        epochs: int = setting(description="passes over the training split", decides_steps=True, is_public=True)

`description` is for people: docs/recipe.md and the JSON schema print it. `decides_steps` is for resume, which compares
these values with the checkpoint's. `is_public` is for exports, which publish these values with the model. A field that
declares nothing is a bug (`flags_of`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, PydanticCustomError, ValidationError, core_schema

ANY = "*"  # in a field's place: any class name, any source number


class Section(BaseModel):
    """A recipe section: unknown keys and wrong types are errors, values do not change after loading."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


@dataclass(frozen=True, kw_only=True)
class Flags:
    """What a field declares for the program.

    decides_steps: another value gives other optimizer steps, so a run cannot resume with it unasked. is_public: the
    value may be published with the model: it names no folder, no person and no team.
    """

    decides_steps: bool
    is_public: bool

    def __call__(self, schema: dict[str, Any]) -> None:
        """Add nothing to the field's JSON schema, which pydantic offers here."""


def setting(
    default: Any = ..., *, description: str, decides_steps: bool, is_public: bool, **pydantic_arguments: Any
) -> Any:
    """A field of a section, required if it has no default. pydantic_arguments: as for `pydantic.Field`."""
    flags = Flags(decides_steps=decides_steps, is_public=is_public)
    return Field(default, description=description, json_schema_extra=flags, **pydantic_arguments)


def step_setting(default: Any = ..., **arguments: Any) -> Any:
    """A setting that decides the steps and may be published. arguments: as for `setting`."""
    return setting(default, decides_steps=True, is_public=True, **arguments)


def flags_of(field: FieldInfo) -> Flags:
    """What a field declares. Raises TypeError for one that was not made by `setting`."""
    if not isinstance(field.json_schema_extra, Flags):
        raise TypeError(f"a field says nothing of decides_steps and is_public; use setting(): {field}")
    return field.json_schema_extra


@dataclass(frozen=True)
class Rule:
    """In the `Annotated` type of a field that takes several types: what it takes, in one sentence.

    Without it, pydantic reports one problem for each type that it tried.
    """

    text: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        def check(value: Any, inner: core_schema.ValidatorFunctionWrapHandler) -> Any:
            try:
                return inner(value)
            except ValidationError:
                raise PydanticCustomError("rule", "{text}", {"text": self.text}) from None

        return core_schema.no_info_wrap_validator_function(check, handler(source))


def is_section(annotation: Any) -> bool:
    """Whether a field is a section, neither a value nor a list or mapping of sections."""
    return isinstance(annotation, type) and issubclass(annotation, Section)


def inner_section(annotation: Any) -> type[Section] | None:
    """The section that a field is or holds: optional, in a list, in a mapping. None for a plain value."""
    if is_section(annotation):
        section: type[Section] = annotation
        return section
    return next(filter(None, map(inner_section, get_args(annotation))), None)


def all_fields(section: type[Section], place: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], FieldInfo]]:
    """The place and declaration of every field, sections inside included: `("data", "sources", ANY, "path")`."""
    for name, field in section.model_fields.items():
        here = (*place, field.alias or name)
        yield here, field
        if (inner := inner_section(field.annotation)) is not None:
            yield from all_fields(inner, (*here, ANY) if get_origin(field.annotation) in (list, dict) else here)


def chosen_values(section: type[Section], values: Mapping[str, Any], choose: Callable[[Flags], bool]) -> dict[str, Any]:
    """The part of a section's values (by key, as in JSON) whose fields are chosen by their flags.

    A missing value (the field is newer than the checkpoint) is None. A section without a chosen field is left out.
    """
    chosen: dict[str, Any] = {}
    for name, field in section.model_fields.items():
        key, inner = field.alias or name, inner_section(field.annotation)
        value = values.get(key)
        if inner is None:
            if choose(flags_of(field)):
                chosen[key] = value
        elif is_section(field.annotation):
            if part := chosen_values(inner, value or {}, choose):
                chosen[key] = part
        elif choose(flags_of(field)):
            chosen[key] = _chosen_entries(inner, value, field.annotation, choose)
    return chosen


def _chosen_entries(inner: type[Section], value: Any, annotation: Any, choose: Callable[[Flags], bool]) -> Any:
    """The same inside a list, mapping or optional section."""
    if value is None:
        return None
    if get_origin(annotation) is list:
        return [chosen_values(inner, entry, choose) for entry in value]
    if get_origin(annotation) is dict:
        return {name: chosen_values(inner, entry, choose) for name, entry in value.items()}
    return chosen_values(inner, value, choose)
