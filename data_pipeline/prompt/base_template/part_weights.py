"""Weights within an answer: of its reasoning, its text (with stretches of their own weight), and its tool calls."""

from __future__ import annotations

from collections.abc import Iterator

from data_pipeline.conversation import Message, PartWeights, Span
from data_pipeline.errors import RowError
from data_pipeline.prompt.base_template.answers import FoundAnswer
from data_pipeline.prompt.base_template.chat import Plain
from data_pipeline.prompt.base_template.segments import Stretch
from data_pipeline.prompt.part_weights import MessageWeights, message_weights
from data_pipeline.text_rules import RESERVED_CHARACTER


def stretches_of(
    message: Message,
    text: str,
    answer: FoundAnswer,
    *,
    weight: float,
    parts: PartWeights,
    plain: Plain,
) -> list[Stretch]:
    """The stretches of one answer with their loss weights. weight: of its message. text: of the conversation.

    What the template writes before a part belongs to that part, and what it writes after the last part to the last one.
    Raises RowError where parts have different weights and the place of one of them is not certain.
    """
    weights = message_weights(message, weight, parts)
    found = _stretches(message, text, answer, weights, plain)
    return [
        Stretch(start=max(begin, stretch.start), end=min(stop, stretch.end), weight=stretch.weight)
        for begin, stop in answer.learned
        for stretch in found
        if max(begin, stretch.start) < min(stop, stretch.end)
    ]


def _stretches(
    message: Message, text: str, answer: FoundAnswer, weights: MessageWeights, plain: Plain
) -> list[Stretch]:
    """Stretches that cover the whole answer."""
    used = {weights.end, *(span.weight for span in weights.text if span.text)}
    used |= {weights.reasoning} if message.reasoning else set()
    used |= {weights.tool_calls} if message.tool_calls else set()
    if len(used) == 1:
        return [Stretch(start=answer.start, end=answer.end, weight=weights.end)]
    stretches, at = [], answer.start
    for end, part_weight in _parts(message, text, answer, weights, plain):
        stretches.append(Stretch(start=at, end=end, weight=part_weight))
        at = end
    return [*stretches, Stretch(start=at, end=answer.end, weight=weights.end)]


def _parts(
    message: Message, text: str, answer: FoundAnswer, weights: MessageWeights, plain: Plain
) -> Iterator[tuple[int, float]]:
    """Where each part but the last ends, and its weight."""
    at = answer.start
    if message.reasoning:
        _, at = _only_place(text, plain, message.reasoning, at, answer, "reasoning")
        yield at, weights.reasoning
    if message.content.strip():
        begin, end = _only_place(text, plain, message.content, at, answer, "text")
        yield from _spans(message.content, text, begin, end, weights.text, plain)


def _spans(
    content: str, text: str, begin: int, end: int, spans: tuple[Span, ...], plain: Plain
) -> Iterator[tuple[int, float]]:
    """Where each span of a content at begin:end ends, and its weight. The text may be without the white space around
    the content, and has reserved characters that the content has not.
    """
    places = [place for place in range(begin, end) if text[place] != RESERVED_CHARACTER] + [end]
    done = 0 if text.startswith(plain(content), begin) else len(content.lstrip()) - len(content)
    for span in spans[:-1]:
        done += len(span.text)
        yield places[min(max(done, 0), len(places) - 1)], span.weight
    yield end, spans[-1].weight


def _only_place(text: str, plain: Plain, part: str, start: int, answer: FoundAnswer, name: str) -> tuple[int, int]:
    """Where an answer has a text; as it is written, or without the white space around it.

    Raises RowError where it is not there exactly once.
    """
    for candidate in (plain(part), plain(part.strip())):
        found = text.find(candidate, start, answer.end)
        if found < 0:
            continue
        if text.find(candidate, found + 1, answer.end) < 0:
            return found, found + len(candidate)
        break
    raise RowError(
        "uncertain_answer",
        f"message {answer.number + 1}: the place of its {name} in the answer is not certain, so its parts cannot have "
        "weights of their own; give them the same weight",
    )
