"""A few conversations as they will be trained on, before anything is tokenized: `ochat init` and `ochat check`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

from data_pipeline.conversation import ControlToken, Segment, TaggedConversation
from data_pipeline.errors import RowError
from data_pipeline.prompt.prompt_format import Renderer
from data_pipeline.text_rules import visible

T = TypeVar("T")
NUM_SHOWN = 3
LEGEND = "{role prefix}, «control token», [factor of the class's weight|supervised text], the rest is not supervised"
_MOST_CHARACTERS = 240  # of one message


def spread(items: Sequence[T], count: int = NUM_SHOWN) -> list[T]:
    """The first, the last and those between them, evenly taken."""
    if len(items) <= count:
        return list(items)
    return [items[number * (len(items) - 1) // (count - 1)] for number in range(count)]


def training_text(item: TaggedConversation, render: Renderer) -> str:
    """The prompts of a conversation with what is supervised marked, long messages with their middle left out."""
    try:
        rendered = render(item)
    except RowError as error:
        return f"({error})"
    return "\n".join("".join(_marked(one.segments)) for one in rendered)


def _marked(segments: Sequence[Segment]) -> Iterator[str]:
    opened = 0.0
    for segment in segments:
        for text, weight in _pieces(segment):
            if weight != opened:
                yield ("]" if opened else "") + (f"[{weight:.4g}|" if weight else "")
                opened = weight
            yield text
    if opened:
        yield "]"


def _pieces(segment: Segment) -> Iterator[tuple[str, float]]:
    """(text, weight) of a segment."""
    if isinstance(segment, ControlToken):
        yield f"«{visible(segment.text)}»", segment.weight
        return
    if segment.prefix:
        yield f"{{{visible(segment.prefix)}}}", 0.0
    if segment.spans:
        for span in segment.spans:
            yield visible(_short(span.text)), span.weight
    elif segment.content:
        yield visible(_short(segment.content)), segment.weight


def _short(text: str) -> str:
    if len(text) <= _MOST_CHARACTERS:
        return text
    half = _MOST_CHARACTERS // 2
    shorter = f"{text[:half]} ... ({len(text) - 2 * half:,} characters) ... {text[-half:]}"
    return shorter if len(shorter) < len(text) else text
