"""What prepare, checks and exports need of a prompt format, whatever kind it is.

There are two kinds: formats that are data (`templates.py`), and the Jinja template of a base (`base_template/`). This
file is the only place that chooses between them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from data_pipeline.conversation import TaggedConversation
from data_pipeline.prompt.base_template.rows import BaseRows
from data_pipeline.prompt.base_template.template import BaseTemplate
from data_pipeline.prompt.prompt_row import PromptRow
from data_pipeline.prompt.render import render
from data_pipeline.prompt.template import Template
from data_pipeline.prompt.tokenization import TokenizerSpec

AnyTemplate = Template | BaseTemplate


class PromptTemplate(Protocol):
    """What both kinds of template say of themselves."""

    @property
    def name(self) -> str:
        """As the manifest has it."""

    @property
    def control_tokens(self) -> tuple[str, ...]:
        """The control tokens that it writes, without beginning-of-sequence."""

    @property
    def end_of_turn(self) -> str:
        """The control token that ends an answer; the model learns to write it."""

    @property
    def after_turn(self) -> str:
        """What `PromptRow.segments` has after the last end of turn, which the length rule always leaves out."""

    @property
    def inference_condition(self) -> str:
        """The condition that published models of this format are prompted with."""


RowsOf = Callable[[TaggedConversation], Sequence[PromptRow]]


def rows_of(template: AnyTemplate, tokenizer: TokenizerSpec) -> RowsOf:
    """A function from a conversation to its rows of training.

    Most formats have one row for a conversation. A template that rewrites the history of a conversation has one for
    each answer, with their own ids. The function raises RowError for a conversation that the format cannot show.
    """

    if isinstance(template, BaseTemplate):
        return BaseRows(template, tokenizer)

    def built_in(tagged: TaggedConversation) -> Sequence[PromptRow]:
        return (PromptRow(tagged=tagged, segments=render(tagged, template, bos_token=tokenizer.bos_token)),)

    return built_in
