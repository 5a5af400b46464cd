"""Paths in a recipe: `~` and `${NAME}` at the beginning of, or inside, the text of a key that holds a path.

A `PathText` field takes text and gives the expanded path, which every reader uses as it is. What is written back (run
folders, exports, fingerprints, the comparison with a checkpoint) is the text as a person wrote it. So a recipe is the
same recipe on a machine with another home, and no home is published.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Annotated, Any, get_args

from pydantic import Field, GetCoreSchemaHandler, SerializationInfo, ValidationInfo
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, core_schema

EXPANDED = {"expanded_paths": True}  # serialization context: paths as they are used, to compare them between hosts
KEEP_UNSET = {"keep_unset_names": True}  # validation context: a name that is not set stays, for recipes of ended runs

# `${NAME}`, `$NAME`, and both after a second `$`, which makes them plain text.
_NAMES = re.compile(r"\$(?P<plain>\$)?(?:\{(?P<braced>[^{}]*)(?P<end>\}?)|(?P<bare>[A-Za-z_][A-Za-z0-9_]*))")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_HOME = re.compile(r"~[^/]*")
_LOOKS_LIKE_A_PATH = re.compile(r"~([A-Za-z0-9._-]*/|$)|\$\{[^{}]*\}")


class ExpandedPath(str):
    """An expanded path that knows the text it came from."""

    written: str

    def __new__(cls, expanded: str, written: str | None = None) -> ExpandedPath:
        """written: None where the text needs no expansion."""
        path = super().__new__(cls, expanded)
        path.written = expanded if written is None else written
        return path


def expand(text: str, environment: Mapping[str, str] = os.environ) -> str:
    """A path with its `~` or `~USER` (at the beginning) and every `${NAME}` replaced.

    `$${` and `$$N` stand for a plain `$`. Raises ValueError for a user or a name that this machine does not know, for
    an empty name, and for `$NAME`, which a shell would replace.
    """
    home, rest = "", text
    if text.startswith("~"):
        user = _HOME.match(text)
        assert user is not None, "it begins with ~"
        home, rest = os.path.expanduser(user[0]), text[user.end() :]
        if home == user[0]:
            raise ValueError(f"`{user[0]}` is no home on this machine; for a file of that name write `./{user[0]}`")
    return home + _NAMES.sub(lambda found: _value(found, environment), rest)


def _value(found: re.Match[str], environment: Mapping[str, str]) -> str:
    if found["plain"]:
        return found[0][1:]
    if found["bare"]:
        bare = found["bare"]
        raise ValueError(f"`${bare}` is not replaced; write `${{{bare}}}`, or `$${bare}` for a plain `$`")
    name = found["braced"]
    if not found["end"] or not _NAME.fullmatch(name):
        raise ValueError(f"`{found[0]}` is not `${{NAME}}`; write `$$` for a plain `$`")
    if not environment.get(name):
        state = "is empty" if name in environment else "is not set"
        raise ValueError(
            f"`${{{name}}}`: {name} {state} in the environment; `export {name}=...`, or write the path out"
        )
    return environment[name]


def looks_like_a_path(text: str) -> bool:
    """Whether a text holds what is expanded in paths, for keys that hold none."""
    return _LOOKS_LIKE_A_PATH.match(text) is not None or ("${" in text and _LOOKS_LIKE_A_PATH.search(text) is not None)


def written_path(path: str) -> str:
    """The text that gives a path when it is expanded: as it was written, where that is known."""
    if isinstance(path, ExpandedPath):
        return path.written
    text = re.sub(r"\$(?=[{$A-Za-z_])", "$$", path)
    return f"./{text}" if text.startswith("~") else text


class PathMark:
    """In the `Annotated` type of a field: it holds a path."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        def expanded(value: str, info: ValidationInfo) -> str:
            if isinstance(value, ExpandedPath):
                return value
            try:
                return ExpandedPath(expand(value), value)
            except ValueError:
                if info.context and info.context.get("keep_unset_names"):
                    return ExpandedPath(value)
                raise

        def serialized(value: str, info: SerializationInfo) -> str:
            return str(value) if info.context and info.context.get("expanded_paths") else written_path(value)

        serialization = core_schema.plain_serializer_function_ser_schema(
            serialized, info_arg=True, return_schema=core_schema.str_schema()
        )
        return core_schema.with_info_after_validator_function(expanded, handler(source), serialization=serialization)


PathText = Annotated[str, Field(min_length=1), PathMark()]


def is_path(field: FieldInfo) -> bool:
    """Whether a field holds a path, or may hold one."""
    return any(isinstance(mark, PathMark) for mark in field.metadata) or _is_marked(field.annotation)


def _is_marked(annotation: Any) -> bool:
    marks = getattr(annotation, "__metadata__", ())
    return any(isinstance(mark, PathMark) for mark in marks) or any(map(_is_marked, get_args(annotation)))
