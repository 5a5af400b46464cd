"""A field that may hold a part of the conversation, and that nothing reads: the error that names it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from data_pipeline.errors import RowError
from data_pipeline.formats.known_keys import content_kind, is_harmless
from data_pipeline.text_rules import shown

_MOST_LEVELS = 6


class UnreadFieldError(RowError):
    """A field that nothing reads. name: with dots, as `data.ignore_fields` takes it."""

    def __init__(self, name: str, value: Any, kind: str) -> None:
        super().__init__(
            "unread_field",
            f"the field `{name}` holds {kind} that would not be trained on ({shown(value)}); leave it out with "
            f"`data.ignore_fields: [{name}]`, or read it with the source's `fields`",
        )
        self.name = name
        self.args = (name, value, kind)  # what unpickling calls this with


def content_leaves(
    values: Mapping[str, Any], prefix: str, known: frozenset[str], depth: int = 1
) -> Iterator[tuple[str, Any, str]]:
    """(dotted name, value, kind) of the fields that may hold content. known: dotted names that are read or ignored."""
    for key, value in values.items():
        name = f"{prefix}{key}"
        if name in known or is_harmless(key, value):
            continue
        kind = content_kind(key, value)
        if kind is not None:
            yield name, value, kind
        elif isinstance(value, Mapping) and depth < _MOST_LEVELS:
            yield from content_leaves(value, f"{name}.", known, depth + 1)
        elif isinstance(value, Mapping) and value:
            yield name, value, "an object"
