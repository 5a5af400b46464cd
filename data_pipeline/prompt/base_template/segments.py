"""From a text and the weights of its stretches to segments."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from data_pipeline.conversation import ControlToken, Segment, Span, Text


@dataclass(frozen=True, kw_only=True, slots=True)
class Stretch:
    """Characters start:end of a text have a loss weight."""

    start: int
    end: int
    weight: float


@dataclass(frozen=True, kw_only=True)
class ControlTokens:
    """The control tokens of a tokenizer. pattern: finds any of them, the longest first.

    strips: token -> whether it takes the white space to its left, and to its right.
    """

    pattern: re.Pattern[str]
    strips: Mapping[str, tuple[bool, bool]]


def segments_of(text: str, stretches: Sequence[Stretch], tokens: ControlTokens) -> Iterator[Segment]:
    """The segments of a text. stretches: in order, without overlap; all else has weight 0."""
    start, strips_left, rest = 0, False, list(stretches)
    for match in tokens.pattern.finditer(text):
        takes_left, takes_right = tokens.strips[match.group()]
        yield from _text(text, start, match.start(), rest, strips_left=strips_left, strips_right=takes_left)
        yield ControlToken(text=match.group(), weight=_weight_at(match.start(), rest))
        start, strips_left = match.end(), takes_right
    yield from _text(text, start, len(text), rest, strips_left=strips_left, strips_right=False)


def _weight_at(place: int, rest: list[Stretch]) -> float:
    while rest and rest[0].end <= place:
        rest.pop(0)
    return rest[0].weight if rest and rest[0].start <= place else 0.0


def _text(
    text: str, start: int, end: int, rest: list[Stretch], *, strips_left: bool, strips_right: bool
) -> Iterator[Text]:
    """The text between two control tokens; strips_left: the one before takes the white space that follows it."""
    while strips_left and start < end and text[start].isspace():
        start += 1
    while strips_right and start < end and text[end - 1].isspace():
        end -= 1
    if start == end:
        return
    while rest and rest[0].end <= start:
        rest.pop(0)
    pieces, at = [], start
    for stretch in rest:
        if stretch.start >= end:
            break
        if stretch.start > at:
            pieces.append(Span(text=text[at : stretch.start], weight=0.0))
        at = min(stretch.end, end)
        pieces.append(Span(text=text[max(stretch.start, start) : at], weight=stretch.weight))
    if at < end:
        pieces.append(Span(text=text[at:end], weight=0.0))
    prefix = pieces.pop(0).text if pieces[0].weight == 0.0 else ""
    content = "".join(piece.text for piece in pieces)
    if len({piece.weight for piece in pieces}) <= 1:
        yield Text(prefix=prefix, content=content, weight=pieces[0].weight if pieces else 0.0)
    else:
        yield Text(prefix=prefix, content=content, spans=tuple(pieces))
