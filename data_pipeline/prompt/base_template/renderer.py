"""From a tagged conversation to segments, for the template of a base."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace

from data_pipeline.conversation import Conversation, Message, Segment, TaggedConversation
from data_pipeline.errors import RowError
from data_pipeline.prompt.base_template.answers import AnswerFinder, FoundAnswer, ShownChat
from data_pipeline.prompt.base_template.chat import chat_of, plain_for
from data_pipeline.prompt.base_template.part_weights import stretches_of
from data_pipeline.prompt.base_template.sandbox import BLOCK_CLOSE, BLOCK_OPEN, compiled
from data_pipeline.prompt.base_template.segments import ControlTokens, Stretch, segments_of
from data_pipeline.prompt.base_template.template import BaseTemplate
from data_pipeline.prompt.rendered import RenderedConversation
from data_pipeline.prompt.tokenization import TemplateTokenizer, TokenizerSpec


class BaseRenderer:
    """Renders a conversation once, or once for each answer where the template rewrites what came before it."""

    def __init__(self, template: BaseTemplate, tokenizer: TokenizerSpec) -> None:
        special_tokens = tokenizer.special_tokens
        self._template, self._tokenizer = template, TemplateTokenizer(tokenizer)
        self._plain = plain_for(special_tokens)
        self._tokens = control_tokens_of(tokenizer)
        self._find = AnswerFinder(template, compiled(template.text), plain=self._plain, controls=self._tokens.pattern)

    def __call__(self, tagged: TaggedConversation) -> Sequence[RenderedConversation]:
        """Render one. Raises RowError where the template cannot show the conversation, or an answer cannot be found."""
        conversation = tagged.conversation
        _refuse_marks(conversation)
        wanted = [number for number, weight in enumerate(tagged.message_weights) if weight > 0.0]
        if not wanted:
            # nothing to learn: the length rule drops and counts it
            return (RenderedConversation(tagged=tagged, segments=()),)
        if other := [number + 1 for number in wanted if conversation.messages[number].role != "assistant"]:
            raise RowError("invalid_weight", f"message {other[0]}: only assistant messages can have a weight here")
        chat = chat_of(conversation, tagged.condition, self._template.condition_in, self._plain)
        shown, is_rewritten = self._find(conversation, chat, wanted)
        if not is_rewritten:
            return (RenderedConversation(tagged=tagged, segments=self._segments(tagged, shown[0])),)
        if self._template.rewritten_history == "error":
            raise RowError(
                "rewritten_history",
                f"message {wanted[-1] + 1}: the template rewrites what came before this answer; set "
                "`model.rewritten_history` to one_row_per_answer or last_answer",
            )
        left_out = 0
        if self._template.rewritten_history == "last_answer":
            left_out, shown = len(shown) - 1, shown[-1:]
        rendered = [self._ending_with(tagged, one) for one in shown]
        rendered[0] = replace(rendered[0], answers_left_out=left_out)
        return tuple(rendered)

    def _ending_with(self, tagged: TaggedConversation, shown: ShownChat) -> RenderedConversation:
        """The conversation up to one answer, the only one that is learned."""
        conversation, [answer] = tagged.conversation, shown.answers
        identifier = f"{conversation.id}#{answer.number + 1}"
        part = replace(conversation, id=identifier, messages=conversation.messages[: shown.num_messages])
        weights = [0.0] * answer.number + [tagged.message_weights[answer.number]]
        own = replace(tagged, conversation=part, message_weights=tuple(weights))
        return RenderedConversation(tagged=own, segments=self._segments(own, shown))

    def _segments(self, tagged: TaggedConversation, shown: ShownChat) -> tuple[Segment, ...]:
        stretches: list[Stretch] = []
        for answer in shown.answers:
            self._require_parted(tagged.conversation.messages[answer.number], shown.text, answer)
            stretches += self._stretches(tagged, shown.text, answer)
        return tuple(segments_of(shown.text[: shown.answers[-1].end], stretches, self._tokens))

    def _require_parted(self, message: Message, text: str, answer: FoundAnswer) -> None:
        """Raise RowError where white space that the template writes at the start of an answer becomes one token with
        that at the end of the prompt: a model would be prompted with other ids than it was trained on.
        """
        start = answer.start
        if not (text[start - 1 : start].isspace() and text[start : start + 1].isspace()):
            return
        if text.startswith(self._plain(message.content), start):
            return  # white space of the text itself counts as prompt
        begin = max((match.end() for match in self._tokens.pattern.finditer(text, 0, start)), default=0)
        after = self._tokens.pattern.search(text, start)
        if not self._tokenizer.keeps_prefix(text[begin:start], text[start : after.start() if after else None]):
            raise RowError(
                "uncertain_answer",
                f"message {answer.number + 1}: white space at the start of the answer becomes one token with the end "
                "of the prompt; give the message what the template expects (reasoning, for example), or set "
                "`model.template_variables`",
            )

    def _stretches(self, tagged: TaggedConversation, text: str, answer: FoundAnswer) -> list[Stretch]:
        message = tagged.conversation.messages[answer.number]
        weight = tagged.message_weights[answer.number]
        return stretches_of(message, text, answer, weight=weight, parts=tagged.part_weights, plain=self._plain)


def control_tokens_of(tokenizer: TokenizerSpec) -> ControlTokens:
    """How the control tokens of a tokenizer are found in a text."""
    strips = {
        token["content"]: (bool(token.get("lstrip")), bool(token.get("rstrip")))
        for token in json.loads(tokenizer.backend)["added_tokens"]
        if token["special"]
    }
    longest_first = sorted(strips, key=len, reverse=True)
    return ControlTokens(pattern=re.compile("|".join(map(re.escape, longest_first)) or "(?!)"), strips=strips)


def _refuse_marks(conversation: Conversation) -> None:
    texts = [conversation.system, conversation.tools]
    for message in conversation.messages:
        texts += (message.content, message.reasoning, *(call.arguments for call in message.tool_calls))
    if any(BLOCK_OPEN in text or BLOCK_CLOSE in text for text in texts):
        raise RowError("reserved_character", "holds U+FDD1 or U+FDD2, which text may not contain; remove it")
