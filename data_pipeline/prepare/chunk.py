"""What a worker process does with one chunk of raw rows: read, parse, tag, render, tokenize, cut.

Rows that hold tokens already are read, checked and cut; their class and text are recovered from the tokens (turns.py).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from data_pipeline.classes.tagging import Tagger, class_table
from data_pipeline.conversation import Conversation, TaggedConversation, TokenizedConversation
from data_pipeline.errors import RowError
from data_pipeline.ledger import Ledger
from data_pipeline.prepare.columns import RowColumns
from data_pipeline.prepare.job import PrepareJob
from data_pipeline.prompt.length_rule import LengthRule
from data_pipeline.prompt.templates import render
from data_pipeline.prompt.tokenization import TemplateTokenizer
from data_pipeline.prompt.turns import TurnReader
from data_pipeline.read import sources
from data_pipeline.read.formats import parse_row
from data_pipeline.read.openchat_parquet import BatchChunk, read_tokenized
from data_pipeline.read.sources import Chunk
from data_pipeline.settings import SourceSettings

Items = list[tuple[TaggedConversation, TokenizedConversation | RowError]]


@dataclass(kw_only=True)
class ChunkResult:
    """The rows of one chunk. The arrays are aligned with `rows`; class names are resolved to ids by the main
    process.
    """

    source: int
    rows: pa.RecordBatch  # SCHEMA without class_id and condition_id
    places: list[str]
    class_names: list[str]
    conditions: dict[str, str]  # of each class
    row_conditions: list[str]
    held_out_conversations: dict[int, TaggedConversation]  # by row, those that were kept whole
    has_own_id: np.ndarray
    held_out: np.ndarray
    truncated: np.ndarray
    tail_trimmed: np.ndarray
    control_text: np.ndarray
    condition_left_out: np.ndarray
    ledger: Ledger  # of the rows that were dropped


class ChunkProcessor:
    """Does all of a chunk's work: read, parse, tag, render, tokenize, cut."""

    def __init__(self, job: PrepareJob) -> None:
        self._job = job
        self._tag = Tagger(job.data, job.rewards)
        self._scored_by = job.data.classes_from.field if job.data.classes_from else None
        self._tokenizer = TemplateTokenizer(job.tokenizer)
        classes = class_table(job.data, job.rewards)
        self._read_turns = TurnReader(self._tokenizer, job.template, classes, bos_token=job.tokenizer.bos_token)
        self._length_rule = LengthRule.of(job.template, self._tokenizer, max_length_tokens=job.max_length_tokens)

    def __call__(self, source_number: int, chunk: Chunk | BatchChunk) -> ChunkResult:
        """Process one chunk of source `source_number`."""
        source, ledger = self._job.data.sources[source_number], Ledger()
        conditions: dict[str, str] = {}
        if isinstance(chunk, BatchChunk):
            items = self._from_tokens(source, chunk, ledger, conditions)
        else:
            items = self._from_text(source, chunk, ledger, conditions)
        kept, columns = [], RowColumns()
        for item, tokens in items:
            if self._cut_and_collect(item.conversation, tokens, ledger, columns):
                kept.append(item)
        ledger.num_read -= len(kept)  # rows handed on are counted by the main process
        own_ids = [item.conversation.id != item.conversation.place for item in kept]
        held_out = [self._is_held_out(item.conversation) for item in kept]
        whole = {row: item for row, item in enumerate(kept) if held_out[row] and not columns.truncated[row]}
        if isinstance(chunk, BatchChunk):
            whole = self._rendered_exactly(whole, columns, ledger)
        return ChunkResult(
            source=source_number,
            rows=columns.batch([item.conversation.id for item in kept]),
            places=[item.conversation.place for item in kept],
            class_names=[item.class_name for item in kept],
            conditions=conditions,
            row_conditions=[item.condition for item in kept],
            held_out_conversations=whole,
            has_own_id=np.array(own_ids, dtype=bool),
            held_out=np.array(held_out, dtype=bool),
            truncated=np.array(columns.truncated, dtype=bool),
            tail_trimmed=np.array(columns.tail_trimmed, dtype=bool),
            control_text=np.array([self._holds_control_text(item.conversation) for item in kept], dtype=bool),
            condition_left_out=np.array([item.condition != conditions[item.class_name] for item in kept], dtype=bool),
            ledger=ledger,
        )

    def _from_text(self, source: SourceSettings, chunk: Chunk, ledger: Ledger, conditions: dict[str, str]) -> Items:
        tagged, rendered = [], []
        for place, row in sources.read_chunk(chunk):
            ledger.num_read += 1
            try:
                conversation = parse_row(row, place=place, source=source, scored_by=self._scored_by)
                item = self._tag(conversation, class_name=source.class_name)
            except RowError as error:
                ledger.drop(error.reason, place, str(error), bad=True)
                continue
            if self._is_wanted(item, ledger):
                conditions[item.class_name] = item.condition
                tagged.append(self._maybe_without_condition(item))
                rendered.append(render(tagged[-1], self._job.template, bos_token=self._job.tokenizer.bos_token))
        return list(zip(tagged, self._tokenizer.tokenize(rendered), strict=True))

    def _from_tokens(
        self, source: SourceSettings, chunk: BatchChunk, ledger: Ledger, conditions: dict[str, str]
    ) -> Items:
        items: Items = []
        for place, tokens in read_tokenized(chunk):
            ledger.num_read += 1
            try:
                if isinstance(tokens, RowError):
                    raise tokens
                item = self._read_turns(tokens, place=place, class_name=source.class_name)
            except RowError as error:
                ledger.drop(error.reason, place, str(error), bad=True)
                continue
            if self._is_wanted(item, ledger):
                conditions[item.class_name] = item.condition
                items.append((item, tokens))
        return items

    def _is_wanted(self, item: TaggedConversation, ledger: Ledger) -> bool:
        wanted = self._job.data.only_classes
        if wanted is None or item.class_name in wanted:
            return True
        place = item.conversation.place
        ledger.drop("other_class", place, f"class {item.class_name} is not in data.only_classes", bad=False)
        return False

    def _rendered_exactly(
        self, held_out: dict[int, TaggedConversation], columns: RowColumns, ledger: Ledger
    ) -> dict[int, TaggedConversation]:
        """Those whose recovered text gives their own tokens and weights again, so that it can stand under other
        conditions.
        """
        rendered = [
            render(item, self._job.template, bos_token=self._job.tokenizer.bos_token) for item in held_out.values()
        ]
        exact = {}
        for (row, item), tokens in zip(held_out.items(), self._tokenizer.tokenize(rendered), strict=True):
            end = len(columns.ids[row])
            if (
                not isinstance(tokens, RowError)
                and np.array_equal(tokens.input_ids[:end], columns.ids[row])
                and np.array_equal(tokens.loss_weights[:end], columns.weights[row])
            ):
                exact[row] = item
            else:
                message = (
                    "its text, rendered again, gives other tokens; it is validated, but not under other conditions"
                )
                ledger.note("text_not_recovered", item.conversation.place, message)
        ledger.num_text_not_recovered += len(held_out) - len(exact)
        return exact

    def _cut_and_collect(
        self, conversation: Conversation, tokens: TokenizedConversation | RowError, ledger: Ledger, columns: RowColumns
    ) -> bool:
        """Apply the length rule and trim the unsupervised tail. False where nothing is kept."""
        if isinstance(tokens, RowError):
            ledger.drop(tokens.reason, conversation.place, str(tokens), bad=True)
            return False
        cut, limit = self._length_rule.cut(tokens), self._job.max_length_tokens
        if cut.is_truncated and self._job.data.overlong != "truncate":
            message = f"{cut.whole_length} tokens, at most {limit} allowed"
            ledger.drop("overlong", conversation.place, message, bad=False)
            return False
        if not cut.num_supervised:
            message = f"no supervised token in the first {limit} tokens"
            ledger.drop("no_supervised_token", conversation.place, message, bad=False)
            return False
        columns.add(cut)
        if cut.is_truncated:
            ledger.note("truncated", conversation.place, f"{cut.whole_length} tokens, cut to {limit}")
        if cut.num_trimmed > 0:
            message = f"{cut.num_trimmed} tokens after the last supervised one left out"
            ledger.note("tail_trimmed", conversation.place, message)
        return True

    def _is_held_out(self, conversation: Conversation) -> bool:
        """Whether the conversation belongs to the validation split, decided by its first prompt and the seed alone."""
        if not self._job.data.validation_ratio:
            return False
        prompt = next((m.content for m in conversation.messages if m.role == "user"), conversation.id)
        key = f"{self._job.seed}\0{conversation.system}\0{prompt}"
        digest = hashlib.blake2b(key.encode("utf-8"), digest_size=8).digest()
        return int.from_bytes(digest, "big") < self._job.data.validation_ratio * 2.0**64

    def _maybe_without_condition(self, tagged: TaggedConversation) -> TaggedConversation:
        """Condition dropout: decided by the text of the conversation and the seed alone, never for a held-out one."""
        ratio = self._job.data.condition_dropout
        if not ratio or self._is_held_out(tagged.conversation):
            return tagged
        messages = [(message.role, message.content) for message in tagged.conversation.messages]
        key = f"{self._job.seed}\0condition dropout\0{tagged.conversation.system}\0{messages}"
        digest = hashlib.blake2b(key.encode("utf-8"), digest_size=8).digest()
        return replace(tagged, condition="") if int.from_bytes(digest, "big") < ratio * 2.0**64 else tagged

    def _holds_control_text(self, conversation: Conversation) -> bool:
        texts = [conversation.system, *(message.content for message in conversation.messages)]
        return any(token in text for token in self._job.template.control_tokens for text in texts)
