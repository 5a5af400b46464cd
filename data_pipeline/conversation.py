"""The values that the preparation hands from step to step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

Role = Literal["user", "assistant", "tool"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Span:
    """A stretch of a text and its weight, as a factor of the weight of its message."""

    text: str
    weight: float = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class ToolCall:
    """A function that an assistant message calls. arguments: a JSON object as text. id: where the row names one."""

    name: str
    arguments: str
    id: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Message:
    """One turn, of up to three parts: reasoning, text, and tool calls.

    content: the text; of a `tool` message the tool's result.
    weight: the row's own weight for the tokens of this message, None where the row gives none.
    spans: the text in stretches of their own weight; they join to `content`. Empty where it has one weight. The end of
        turn counts as the last one, which may be empty.
    reasoning, tool_calls: of an assistant message.
    name, tool_call_id: of a `tool` message, where the row names the function or the call that it answers.
    """

    role: Role
    content: str
    weight: float | None = None
    spans: tuple[Span, ...] = ()
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    name: str | None = None
    tool_call_id: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Conversation:
    """One conversation as it was read.

    id: the row's own id, or its place where it has none.
    place: `file:line` (or row number), for messages to people.
    class_value: what the source's `class_field` holds in this row, None where the source has no `class_field`.
    condition: the condition written in the row (format `openchat` only), None where there is none.
    score: the number in the row that decides its weight (`reward_field`) or its class (`classes_from`), None without.
    tools: the functions that the assistant may call, a JSON list as text; "" where the row names none.
    num_empty_cut: empty messages at the end of the row, which are left out.
    """

    id: str
    place: str
    messages: tuple[Message, ...]
    system: str = ""
    class_value: str | None = None
    condition: str | None = None
    score: float | None = None
    tools: str = ""
    num_empty_cut: int = 0

    @property
    def has_own_id(self) -> bool:
        """Whether the row names its id."""
        return self.id != self.place


@dataclass(frozen=True, kw_only=True, slots=True)
class PartWeights:
    """How much the parts of an assistant message count, as factors of its weight."""

    reasoning: float = 1.0
    answer: float = 1.0
    tool_calls: float = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class TaggedConversation:
    """A conversation with its class: the condition that joins every role prefix, and a loss weight per message.

    part_weights: of the parts within each message.
    tokens: where the row holds tokens instead of text (format `openchat_tokenized`); they are used unchanged.
    """

    conversation: Conversation
    class_name: str
    condition: str
    message_weights: tuple[float, ...]
    part_weights: PartWeights = PartWeights()
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

    spans: the content in stretches of their own loss weight; they join to `content`, and `weight` is not used. Empty
    where all of it has one weight.
    """

    prefix: str
    content: str = ""
    weight: float = 0.0
    spans: tuple[Span, ...] = ()


Segment = ControlToken | Text


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizedConversation:
    """Token ids and, for each token, its weight as a target.

    input_ids: int32[T]
    loss_weights: float32[T]; 0 means "not supervised". Token 0 has no context, so its weight is always 0.
    """

    input_ids: np.ndarray
    loss_weights: np.ndarray
