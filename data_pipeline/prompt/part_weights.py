"""The loss weight of each part of a message: the message's own, times the factor of the part, times that of a span."""

from __future__ import annotations

from dataclasses import dataclass

from data_pipeline.conversation import Message, PartWeights, Span


@dataclass(frozen=True, kw_only=True)
class MessageWeights:
    """Loss weights of one message. text: of its spans, or of the whole text where it has none.

    end: of the end of turn, which belongs to the last part: the tool calls, or the last span of the text, or, where
    there is only reasoning, that.
    """

    reasoning: float
    text: tuple[Span, ...]
    tool_calls: float
    end: float


def message_weights(message: Message, weight: float, factors: PartWeights) -> MessageWeights:
    """The weights of a message that has `weight`, the one that its class and its row give it."""
    answer = weight * factors.answer
    spans = message.spans or (Span(text=message.content),)
    text = tuple(Span(text=span.text, weight=answer * span.weight) for span in spans)
    end = text[-1].weight
    if message.tool_calls:
        end = weight * factors.tool_calls
    elif message.reasoning and not message.content and not message.spans:
        end = weight * factors.reasoning
    return MessageWeights(
        reasoning=weight * factors.reasoning, text=text, tool_calls=weight * factors.tool_calls, end=end
    )
