"""Prompts of training as tokens: conversations are rendered and tokenized, many at once."""

from __future__ import annotations

from collections.abc import Sequence

from data_pipeline.conversation import Segment, TaggedConversation, TokenizedConversation
from data_pipeline.errors import RowError
from data_pipeline.prompt.render import render
from data_pipeline.prompt.template import Template
from data_pipeline.prompt.tokenization import TemplateTokenizer


def prompt_tokens(
    items: Sequence[TaggedConversation], template: Template, tokenizer: TemplateTokenizer, *, bos_token: str | None
) -> list[TokenizedConversation | RowError]:
    """The tokens of each conversation; a RowError where it cannot be rendered or tokenized."""
    rendered = [_rendered(item, template, bos_token) for item in items]
    tokens = iter(tokenizer.tokenize([segments for segments in rendered if not isinstance(segments, RowError)]))
    return [segments if isinstance(segments, RowError) else next(tokens) for segments in rendered]


def _rendered(item: TaggedConversation, template: Template, bos_token: str | None) -> Sequence[Segment] | RowError:
    try:
        return render(item, template, bos_token=bos_token)
    except RowError as error:
        return error
