"""A base's own chat template as a value: everything that decides the prompts of training and of exports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

RewrittenHistory = Literal["one_row_per_answer", "last_answer", "error"]
ConditionPlace = Literal["role", "system", "assistant"]
BASE = "base"  # `model.template: base`
TOKENS_OF_OTHER_TEMPLATE = (  # problem and remedy
    "rows of tokens are in OpenChat's prompt format, which is not that of the base's own template",
    "use the template that they were made with",
)


def is_jinja(name: str) -> bool:
    """Whether `model.template` names a Jinja template: that of the tokenizer, or a file."""
    return name == BASE or name.endswith(".jinja")


@dataclass(frozen=True, kw_only=True)
class BaseTemplate:
    """A Jinja template with what was found out about it (`load.py`).

    text: the template. place: where it came from, for messages.
    variables: what it sees beside a conversation: named tokens of the tokenizer, and `model.template_variables`.
    named_tokens: the names of the former.
    dates: what `strftime_now` gives for each format that the template asks for; empty where it asks for none.
    control_tokens: the tokenizer's that the template writes. end_tokens: those that end an answer; the first of them
    ends one without tool calls.
    gap: white space that the template writes between its prompt for an answer and the text of the answer.
    marks_answers: whether it has `{% generation %}` blocks, which then say what is learned.
    """

    text: str
    place: str
    variables: Mapping[str, Any]
    named_tokens: tuple[str, ...]
    dates: Mapping[str, str]
    condition_in: ConditionPlace
    rewritten_history: RewrittenHistory
    control_tokens: tuple[str, ...]
    end_tokens: tuple[str, ...]
    gap: str
    marks_answers: bool
    name: str = BASE
    after_turn: str = ""  # rows end with the end of turn of their last answer
    inference_condition: str = ""

    @property
    def end_of_turn(self) -> str:
        """The control token that ends an answer without tool calls."""
        return self.end_tokens[0]
