"""How deeply JSON and YAML are nested, counted here.

Python's own limit (RecursionError) depends on its version and on how deep the calling code already is: the same text
would be read in one place and refused in another.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import yaml

MOST_LEVELS = 100  # of lists and objects inside each other
TOO_DEEP = f"nested more than {MOST_LEVELS} levels deep"

_STRING_OR_BRACKET = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{}]', re.DOTALL)


def is_value_too_deep(value: Any) -> bool:
    """Whether a value that was read from JSON has more than MOST_LEVELS levels."""
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(MOST_LEVELS):
        values = (item for part in level for item in (part.values() if isinstance(part, dict) else part))
        level = [item for item in values if isinstance(item, dict | list)]
    return bool(level)


def is_text_too_deep(text: str, start: int = 0) -> bool:
    """The same for the text of the JSON value that begins at `start`, which need not be valid. Slower."""
    return any(level > MOST_LEVELS for level, _ in _levels(text, start))


def end_of_value(text: str, start: int) -> int | None:
    """Where the list or object that begins at `start` ends, None where it is cut off. It need not be valid."""
    return next((end for level, end in _levels(text, start) if level == 0), None)


def _levels(text: str, start: int) -> Iterator[tuple[int, int]]:
    """The level after each bracket, with where the bracket ends; up to the end of the first value."""
    level = 0
    for found in _STRING_OR_BRACKET.finditer(text, start):
        sign = found[0]
        if sign in ("[", "{"):
            level += 1
        elif sign in ("]", "}"):
            level -= 1
        else:
            continue
        yield level, found.end()
        if level <= 0:
            return


def no_constant(name: str) -> None:
    """For `parse_constant` of `json.loads`: NaN and infinities, which are not JSON, raise ValueError."""
    raise ValueError(f"{name} is not a number of JSON")


def loads(text: str | bytes, *, constants: bool = True) -> Any:
    """`json.loads`, of UTF-8. Raises ValueError for what is not JSON, and for more than MOST_LEVELS levels.

    constants: whether NaN and infinities may be in it.
    """
    text = text if isinstance(text, str) else text.decode("utf-8")
    try:
        value = json.loads(text, parse_constant=None if constants else no_constant)
    except (ValueError, RecursionError):
        if is_text_too_deep(text):
            raise ValueError(TOO_DEEP) from None
        raise
    if text.count("[") + text.count("{") > MOST_LEVELS and is_value_too_deep(value):
        raise ValueError(TOO_DEEP)
    return value


def load_yaml(text: str) -> Any:
    """`yaml.safe_load`. Raises yaml.YAMLError for what is not YAML, ValueError for more than MOST_LEVELS levels."""
    level = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        level += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if level > MOST_LEVELS:
            raise ValueError(TOO_DEEP)
    return yaml.safe_load(text)
