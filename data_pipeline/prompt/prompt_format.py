"""What prepare, checks and exports need of a prompt format, whatever kind it is.

There are two kinds: formats that are data (`templates.py`), and the Jinja template of a base (`base_template/`). This
file is the only place that chooses between them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from data_pipeline.conversation import TaggedConversation
from data_pipeline.prompt.base_template.rows import BaseRows
from data_pipeline.prompt.base_template.template import BaseTemplate
from data_pipeline.prompt.prompt_row import PromptRow
from data_pipeline.prompt.render import render
from data_pipeline.prompt.template import Template
from data_pipeline.prompt.tokenization import TokenizerSpec

# Both have `name` (as the manifest has it), `control_tokens` (those that the format writes, without
# beginning-of-sequence), `end_of_turn` (the one that ends an answer, which the model learns to write), `after_turn`
# (what `PromptRow.segments` has behind the last one, which the length rule always leaves out), and
# `inference_condition` (the condition that published models of the format are prompted with).
AnyTemplate = Template | BaseTemplate
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
