"""The length rule: how long a conversation may be, and which of its tokens a prepared row holds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data_pipeline.conversation import TokenizedConversation
from data_pipeline.prompt.prompt_format import AnyTemplate
from data_pipeline.prompt.tokenization import TemplateTokenizer


@dataclass(frozen=True, kw_only=True)
class CutConversation:
    """A conversation up to its last supervised token within the limit; without one nothing of it is left.

    num_supervised: tokens with a weight that are left.
    whole_length: its tokens before the cut, as the limit counts them.
    is_truncated: whether the limit cut it.
    num_trimmed: tokens within the limit that were cut off after the last supervised one.
    """

    tokens: TokenizedConversation
    num_supervised: int
    whole_length: int
    is_truncated: bool
    num_trimmed: int


@dataclass(frozen=True, kw_only=True)
class LengthRule:
    """At most max_length_tokens tokens.

    num_tail_tokens: what the template writes after the last end of turn. It is always left out, so it counts nowhere.
    """

    max_length_tokens: int
    num_tail_tokens: int

    @staticmethod
    def of(template: AnyTemplate, tokenizer: TemplateTokenizer, *, max_length_tokens: int) -> LengthRule:
        """The rule for conversations of a template."""
        return LengthRule(
            max_length_tokens=max_length_tokens, num_tail_tokens=tokenizer.num_text_tokens(template.after_turn)
        )

    def cut(self, tokens: TokenizedConversation) -> CutConversation:
        """Apply the rule to a whole conversation."""
        length, limit = len(tokens.input_ids) - self.num_tail_tokens, self.max_length_tokens
        supervised = np.flatnonzero(tokens.loss_weights[:limit])
        end = int(supervised[-1]) + 1 if len(supervised) else 0
        return CutConversation(
            tokens=TokenizedConversation(input_ids=tokens.input_ids[:end], loss_weights=tokens.loss_weights[:end]),
            num_supervised=len(supervised),
            whole_length=length,
            is_truncated=length > limit,
            num_trimmed=min(length, limit) - end,
        )
