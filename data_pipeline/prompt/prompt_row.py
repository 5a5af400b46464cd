"""A row of training before it is tokenized."""

from __future__ import annotations

from dataclasses import dataclass

from data_pipeline.conversation import Segment, TaggedConversation


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptRow:
    """A row of training, as segments.

    tagged: what it shows. It gives the same row when it is rendered again, under any condition.
    answers_left_out: answers with a weight that no row trains on, as the template rewrites them.
    """

    tagged: TaggedConversation
    segments: tuple[Segment, ...]
    answers_left_out: int = 0
