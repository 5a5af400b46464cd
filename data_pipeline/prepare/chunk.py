"""What a worker does with one chunk of a source: read, tag, render, tokenize, cut.

Rows that hold tokens are read and cut; their class and text are recovered from the tokens (prompt/turns.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from data_pipeline.classes.tagging import Tagger, class_table
from data_pipeline.conversation import Conversation, TaggedConversation, TokenizedConversation
from data_pipeline.errors import RowError, UserError
from data_pipeline.held_out import is_held_out, loses_condition
from data_pipeline.ledger import Tally
from data_pipeline.prepare.chunk_result import ChunkResult, KeptRow
from data_pipeline.prepare.columns import row_batch
from data_pipeline.prepare.job import PrepareJob
from data_pipeline.prompt.base_template.template import BaseTemplate
from data_pipeline.prompt.length_rule import CutConversation, LengthRule
from data_pipeline.prompt.prompt_format import renderer_of
from data_pipeline.prompt.rendered import RenderedConversation
from data_pipeline.prompt.tokenization import TemplateTokenizer
from data_pipeline.prompt.turns import TurnReader
from data_pipeline.read.conversations import BadRow, SourceChunk, read_conversations


class ChunkProcessor:
    """Does all of a chunk's work."""

    def __init__(self, job: PrepareJob) -> None:
        self._job = job
        self._tag = Tagger(job.data, job.rewards)
        self._tokenizer = TemplateTokenizer(job.tokenizer)
        self._read_turns = None
        if any(source.is_tokenized for source in job.data.sources):
            assert not isinstance(job.template, BaseTemplate), "refused by `prepare`"
            classes = class_table(job.data, job.rewards)
            self._read_turns = TurnReader(self._tokenizer, job.template, classes, bos_token=job.tokenizer.bos_token)
        self._render = renderer_of(job.template, job.tokenizer)
        self._length_rule = LengthRule.of(job.template, self._tokenizer, max_length_tokens=job.max_length_tokens)

    def __call__(self, part: SourceChunk) -> ChunkResult:
        """Process one chunk."""
        tally = Tally()
        conditions: dict[str, str] = {}
        rendered: list[RenderedConversation] = []
        for item in self._read(part, tally):
            conditions[item.class_name] = item.condition
            rendered += self._rendered(self._maybe_without_condition(item), tally)
        kept: list[tuple[TaggedConversation, CutConversation]] = []
        for one, tokens in zip(rendered, self._tokens(rendered), strict=True):
            cut = self._cut(one, tokens, tally)
            if cut is not None:
                kept.append((one.tagged, cut))
        rows = [self._row(item, cut, conditions) for item, cut in kept]
        whole = {i: kept[i] for i, row in enumerate(rows) if row.is_held_out and not row.is_truncated}
        return ChunkResult(
            source=part.source,
            columns=row_batch([item.conversation.id for item, _ in kept], [cut for _, cut in kept]),
            rows=rows,
            conditions=conditions,
            held_out=self._with_exact_text(whole, tally),
            tally=tally,
        )

    def _read(self, part: SourceChunk, tally: Tally) -> Iterator[TaggedConversation]:
        """The conversations of a chunk that are wanted; all are counted."""
        data = self._job.data
        for item in read_conversations(
            part.chunk,
            source=data.sources[part.source],
            scored_by=data.scored_by,
            tag=self._tag,
            read_turns=self._read_turns,
            ignored=data.ignore_fields,
        ):
            tally.num_read += 1
            if isinstance(item, BadRow) and item.unread:
                raise UserError(item.place, item.message)
            if isinstance(item, BadRow):
                tally.drop(item.reason, item.place, item.message, bad=True)
            elif data.only_classes is not None and item.class_name not in data.only_classes:
                message = f"class {item.class_name} is not in data.only_classes"
                tally.drop("other_class", item.conversation.place, message, bad=False)
            else:
                yield item

    def _maybe_without_condition(self, item: TaggedConversation) -> TaggedConversation:
        """Condition dropout, never for a held-out conversation."""
        ratio = self._job.data.condition_dropout
        if not ratio or self._is_held_out(item.conversation):
            return item
        lost = loses_condition(item.conversation, ratio=ratio, seed=self._job.seed)
        return replace(item, condition="") if lost else item

    def _is_held_out(self, conversation: Conversation) -> bool:
        return is_held_out(conversation, ratio=self._job.data.validation_ratio, seed=self._job.seed)

    def _rendered(self, item: TaggedConversation, tally: Tally) -> Sequence[RenderedConversation]:
        """Render a conversation; nothing where the template cannot show it. Counts what it gives beyond the first."""
        if item.tokens is not None:
            return (RenderedConversation(tagged=item, segments=()),)
        place = item.conversation.place
        try:
            rendered = self._render(item)
        except RowError as error:
            tally.drop(error.reason, place, str(error), bad=True)
            return ()
        if len(rendered) == 1 and not rendered[0].answers_left_out:
            return rendered
        if len(rendered) > 1:
            tally.num_rows_added += len(rendered) - 1
            tally.note(
                "row_per_answer", place, f"{len(rendered)} rows: the template rewrites what comes before an answer"
            )
        if left_out := sum(one.answers_left_out for one in rendered):
            tally.num_answers_left_out += left_out
            tally.note("answers_left_out", place, f"{left_out} answers that the template rewrites are not trained on")
        return rendered

    def _tokens(self, rendered: Sequence[RenderedConversation]) -> Iterator[TokenizedConversation | RowError]:
        """The tokens of each: its own, or those of its rendered text."""
        texts = iter(self._tokenizer.tokenize([one.segments for one in rendered if one.tagged.tokens is None]))
        return (next(texts) if one.tagged.tokens is None else one.tagged.tokens for one in rendered)

    def _cut(
        self, rendered: RenderedConversation, tokens: TokenizedConversation | RowError, tally: Tally
    ) -> CutConversation | None:
        """Apply the length rule. None where nothing is kept."""
        place, limit = rendered.tagged.conversation.place, self._job.max_length_tokens
        if isinstance(tokens, RowError):
            tally.drop(tokens.reason, place, str(tokens), bad=True)
            return None
        cut = self._length_rule.cut(tokens)
        if cut.is_truncated and self._job.data.overlong != "truncate":
            tally.drop("overlong", place, f"{cut.whole_length} tokens, at most {limit} allowed", bad=False)
            return None
        if not cut.num_supervised:
            message = f"no supervised token in the first {limit} tokens"
            tally.drop("no_supervised_token", place, message, bad=False)
            return None
        if num_empty := rendered.tagged.conversation.num_empty_cut:
            tally.note("empty_end_cut", place, f"{num_empty} empty messages at the end left out")
        if cut.is_truncated:
            tally.note("truncated", place, f"{cut.whole_length} tokens, cut to {limit}")
        if cut.num_trimmed > 0:
            tally.note("tail_trimmed", place, f"{cut.num_trimmed} tokens after the last supervised one left out")
        return cut

    def _row(self, item: TaggedConversation, cut: CutConversation, conditions: dict[str, str]) -> KeptRow:
        conversation = item.conversation
        texts = [conversation.system, *(message.content for message in conversation.messages)]
        for message in conversation.messages:
            if message.reasoning or message.tool_calls:
                texts += [message.reasoning, *(text for c in message.tool_calls for text in (c.name, c.arguments))]
        if conversation.tools:
            texts.append(conversation.tools)
        return KeptRow(
            place=conversation.place,
            own_id=conversation.id if conversation.has_own_id else None,
            class_name=item.class_name,
            condition=item.condition,
            is_held_out=self._is_held_out(conversation),
            is_truncated=cut.is_truncated,
            is_tail_trimmed=cut.num_trimmed > 0,
            has_control_text=any(token in text for token in self._job.template.control_tokens for text in texts),
            lost_condition=item.condition != conditions[item.class_name],
            has_empty_end=conversation.num_empty_cut > 0,
        )

    def _with_exact_text(
        self, whole: dict[int, tuple[TaggedConversation, CutConversation]], tally: Tally
    ) -> dict[int, TaggedConversation]:
        """The conversations whose text gives their own tokens and weights, so it can be put under other conditions.

        All that were read as text, and those read as tokens whose recovered text is exact.
        """
        exact = {row: item for row, (item, _) in whole.items() if item.tokens is None}
        recovered = {row: pair for row, pair in whole.items() if row not in exact}
        again = self._tokenizer.tokenize([self._render(item)[0].segments for item, _ in recovered.values()])
        for (row, (item, cut)), tokens in zip(recovered.items(), again, strict=True):
            if _begins_with(tokens, cut.tokens):
                exact[row] = replace(item, tokens=None)  # the text says it all, and it is less to send
                continue
            tally.num_text_not_recovered += 1
            message = "its text, rendered again, gives other tokens; it is validated, but not under other conditions"
            tally.note("text_not_recovered", item.conversation.place, message)
        return exact


def _begins_with(tokens: TokenizedConversation | RowError, cut: TokenizedConversation) -> bool:
    end = len(cut.input_ids)
    return (
        not isinstance(tokens, RowError)
        and np.array_equal(tokens.input_ids[:end], cut.input_ids)
        and np.array_equal(tokens.loss_weights[:end], cut.loss_weights)
    )
