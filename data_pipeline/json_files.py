"""JSON and text files that are read back: what is damaged, or of another type than expected, is the user's error."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any, TypeVar

from data_pipeline import nesting
from data_pipeline.errors import UserError
from data_pipeline.text_rules import shown

T = TypeVar("T")

LFS_POINTER = "version https://git-lfs.github.com/spec/"  # how a file begins that Git LFS would have replaced


def read_text(path: Path, *, remedy: str = "") -> str:
    """The text of a small file. Raises UserError, with `remedy`, for one that cannot be read or is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(path, f"cannot be read: {error.strerror}", remedy) from None
    except UnicodeDecodeError as error:
        raise UserError(path, f"is damaged, not UTF-8: {error}", remedy) from None


def pointer_instead_of_file() -> tuple[str, str]:
    """Problem and remedy of a file that begins with `LFS_POINTER`: a clone without Git LFS holds such files."""
    problem = "is a pointer of Git LFS and not the file: the repository was cloned without Git LFS"
    return problem, "install git-lfs and run `git lfs pull` in that folder"


def read_json(path: Path, *, remedy: str = "") -> Any:
    """The value of a small JSON file. Raises UserError, with `remedy`, for one that cannot be read or is not JSON."""
    text = read_text(path, remedy=remedy)
    if text.startswith(LFS_POINTER):
        raise UserError(path, *pointer_instead_of_file())
    try:
        return nesting.loads(text)
    except ValueError as error:  # not JSON, a number of 5,000 digits, deep nesting
        raise UserError(path, f"is damaged, not JSON: {error}", remedy) from None


def read_json_object(path: Path, *, remedy: str = "") -> dict[str, Any]:
    """The same for a file that holds one JSON object."""
    value = read_json(path, remedy=remedy)
    if not isinstance(value, dict):
        raise UserError(path, f"is damaged: expected a JSON object, found {shown(value)}", remedy)
    return value


def typed(kind: type[T], value: Any) -> T:
    """A dataclass from its parsed JSON, every field of the type that the class declares; unknown keys are ignored.

    Raises ValueError where a field is missing or of another type.
    """
    if nesting.is_value_too_deep(value):
        raise ValueError(nesting.TOO_DEEP)
    return _adapter(kind).validate_json(json.dumps(value), strict=True)  # type: ignore[no-any-return, arg-type]


@functools.cache
def _adapter(kind: type) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)
