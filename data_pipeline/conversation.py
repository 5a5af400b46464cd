"""The values that the preparation hands from step to step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

Role = Literal["user", "assistant"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Message:
    """One turn. `weight` is the row's own weight for the tokens of this message, None where the row gives none."""

    role: Role
    content: str
    weight: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Conversation:
    """One conversation as it was read.

    id: the row's own id, or its place where it has none.
    place: `file:line` (or row number), for messages to people.
    class_value: what the source's `class_field` holds in this row, None where the source has no `class_field`.
    condition: the condition written in the row (format `openchat` only), None where there is none.
    score: the number in the row that decides its weight (`reward_field`) or its class (`classes_from`), None without.
    """

    id: str
    place: str
    messages: tuple[Message, ...]
    system: str = ""
    class_value: str | None = None
    condition: str | None = None
    score: float | None = None

    @property
    def has_own_id(self) -> bool:
        """Whether the row names its id."""
        return self.id != self.place


@dataclass(frozen=True, kw_only=True, slots=True)
class TaggedConversation:
    """A conversation with its class: the condition that joins every role prefix, and a loss weight per message.

    tokens: where the row holds tokens instead of text (format `openchat_tokenized`); they are used unchanged.
    """

    conversation: Conversation
    class_name: str
    condition: str
    message_weights: tuple[float, ...]
    tokens: TokenizedConversation | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ControlToken:
    """A segment that is exactly one control token of the template, such as `<|end_of_turn|>`."""

    text: str
    weight: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Text:
    """A segment between two control tokens: template text (`prefix`, weight 0) followed by what a person wrote.

    Nothing in it may become a control token, whatever it spells. The end of one Text is always followed by a
    ControlToken, so a Text tokenized on its own gives the ids that it has inside the whole prompt.
    """

    prefix: str
    content: str = ""
    weight: float = 0.0


Segment = ControlToken | Text


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizedConversation:
    """Token ids and, for each token, its weight as a target.

    input_ids: int32[T]
    loss_weights: float32[T]; 0 means "not supervised". Token 0 has no context, so its weight is always 0.
    """

    input_ids: np.ndarray
    loss_weights: np.ndarray
