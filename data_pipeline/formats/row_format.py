"""What there is to know about a row format."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from data_pipeline.conversation import Message

ParsedRow = tuple[str, list[Message]]  # system text ("" for none), messages


def _as_given(messages: Sequence[Message]) -> list[Message]:
    return list(messages)


@dataclass(frozen=True, kw_only=True)
class RowFormat:
    """A row format.

    name: as `format` of a source.
    parse: a row to its system text and messages; raises RowError. None where rows hold tokens instead of text
        (`read/openchat_parquet.py` reads those).
    content_keys: the keys that hold the conversation, so they cannot name a class or hold a score.
    example: a row; the documentation shows it and the tests read it.
    carries_class: a row names its own condition and holds the loss weights themselves, so its source needs no class.
    messages_in_class: what is left of the messages' own weights when a class gives the weight. By default all of them,
        as factors of the class weight.
    """

    name: str
    parse: Callable[[Mapping[str, Any]], ParsedRow] | None
    content_keys: frozenset[str]
    example: Mapping[str, Any] | None
    carries_class: bool = False
    messages_in_class: Callable[[Sequence[Message]], list[Message]] = _as_given

    @property
    def holds_tokens(self) -> bool:
        """Whether rows hold tokens and their weights instead of text."""
        return self.parse is None
