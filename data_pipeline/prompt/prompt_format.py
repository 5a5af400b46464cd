"""What prepare, checks and exports need of a prompt format, whatever kind it is.

There are two kinds: formats that are data (`templates.py`), and the Jinja template of a base (`base_template/`). This
file is the only place that chooses between them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from data_pipeline.conversation import TaggedConversation
from data_pipeline.prompt.base_template.renderer import BaseRenderer
from data_pipeline.prompt.base_template.template import BaseTemplate
from data_pipeline.prompt.render import render
from data_pipeline.prompt.rendered import RenderedConversation
from data_pipeline.prompt.template import Template
from data_pipeline.prompt.tokenization import TokenizerSpec

# Both have `name` (as the manifest has it), `control_tokens` (those that the format writes, without
# beginning-of-sequence), `end_of_turn` (the one that ends an answer, which the model learns to write), `after_turn`
# (what `RenderedConversation.segments` has behind the last one, which the length rule always leaves out), and
# `inference_condition` (the condition that published models of the format are prompted with).
AnyTemplate = Template | BaseTemplate
Renderer = Callable[[TaggedConversation], Sequence[RenderedConversation]]


def renderer_of(template: AnyTemplate, tokenizer: TokenizerSpec) -> Renderer:
    """A function that renders conversations.

    Most formats render a conversation once. A template that rewrites the history of a conversation renders it once for
    each answer, with their own ids. The function raises RowError for a conversation that the format cannot show.
    """

    if isinstance(template, BaseTemplate):
        return BaseRenderer(template, tokenizer)

    def built_in(tagged: TaggedConversation) -> Sequence[RenderedConversation]:
        return (RenderedConversation(tagged=tagged, segments=render(tagged, template, bos_token=tokenizer.bos_token)),)

    return built_in
