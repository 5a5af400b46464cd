"""A conversation before it is tokenized."""

from __future__ import annotations

from dataclasses import dataclass

from data_pipeline.conversation import Segment, TaggedConversation


@dataclass(frozen=True, kw_only=True, slots=True)
class RenderedConversation:
    """A conversation as segments; it becomes one row of the prepared dataset.

    tagged: what it shows: the conversation, or its part up to one answer. Rendered again it gives the same segments.
    answers_left_out: answers with a weight that are not trained on, because the template rewrites them.
    """

    tagged: TaggedConversation
    segments: tuple[Segment, ...]
    answers_left_out: int = 0
