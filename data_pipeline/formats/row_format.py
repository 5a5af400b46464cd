"""What there is to know about a row format."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from data_pipeline.conversation import Message
from data_pipeline.formats.fields import Fields


@dataclass(frozen=True, kw_only=True, slots=True)
class ParsedRow:
    """A conversation of a row.

    system: "" for none. num_cut: empty messages that were cut off its end. answer: which of the row's answers it has
    (`chosen`, `rejected`, `1`, ...), "" where the row has one. own: what the row's fields are where the answers have
    fields of their own; None for the row itself.
    """

    system: str
    messages: Sequence[Message]
    num_cut: int = 0
    answer: str = ""
    own: Mapping[str, Any] | None = None


Parser = Callable[[Any], Sequence[ParsedRow]]  # a row to its conversations; raises RowError


def _as_given(messages: Sequence[Message]) -> Sequence[Message]:
    return messages


@dataclass(frozen=True, kw_only=True)
class RowFormat:
    """A row format.

    name: as `format` of a source.
    fields: the keys that it reads; `fields` of a source changes them.
    parser: for such keys, and for dotted names that are not to be read, what reads a row. None where rows hold tokens
        instead of text (`read/openchat_parquet.py` reads those), and for `auto`.
    example: a row; the documentation shows it and the tests read it.
    carries_class: a row names its own condition and holds the loss weights themselves, so its source needs no class.
    holds_tokens: rows hold tokens and their weights instead of text.
    has_pairs: a row has two conversations, a better and a worse one, so its source needs `answer_classes`.
    messages_in_class: what is left of the messages' own weights when a class gives the weight. By default all of them,
        as factors of the class weight.
    """

    name: str
    fields: Fields
    parser: Callable[[Fields, frozenset[str]], Parser] | None
    example: Mapping[str, Any] | None
    carries_class: bool = False
    holds_tokens: bool = False
    has_pairs: bool = False
    messages_in_class: Callable[[Sequence[Message]], Sequence[Message]] = _as_given
