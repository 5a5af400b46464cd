"""The values of a config as a dictionary, each with the names that lead to it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Path = tuple[str, ...]
Changes = Mapping[Path, Any]


def is_int(value: object) -> bool:
    """Whether a value is a whole number; true and false are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def leaves(values: Mapping[str, Any], lead: Path = ()) -> Iterator[tuple[Path, Any]]:
    """The values of a config with the names that lead to them. A dictionary with numbers as names is a value."""
    for key, value in values.items():
        if isinstance(value, dict) and not (value and all(str(name).isdigit() for name in value)):
            yield from leaves(value, (*lead, str(key)))
        else:
            yield (*lead, str(key)), value


def set_value(values: dict[str, Any], path: Path, value: Any) -> None:
    """Change one value in place."""
    for key in path[:-1]:
        values = values[key]
    values[path[-1]] = value
