"""From the rows of a source to conversations: the one reader of `ochat prepare`, `ochat check` and `ochat init`.

What cannot be read comes as a BadRow in its place, so every row can be counted.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

from data_pipeline.conversation import Conversation, TaggedConversation, TokenizedConversation
from data_pipeline.errors import RowError
from data_pipeline.formats.unread import UnreadFieldError
from data_pipeline.read import sources
from data_pipeline.read.chunks import AnyChunk, ChunkSizes, TokenizedChunk
from data_pipeline.read.openchat_parquet import read_tokenized, tokenized_chunks
from data_pipeline.read.rows import RowReader
from data_pipeline.settings.sources import SourceSettings

C = TypeVar("C", Conversation, TaggedConversation)


@dataclass(frozen=True, kw_only=True)
class BadRow:
    """A row that is not a conversation. reason: the ledger's key; message: value, rule and remedy.

    unread: the field that may hold a part of the conversation and that nothing reads, where that is why; "" otherwise.
    """

    place: str
    reason: str
    message: str
    unread: str = ""

    @staticmethod
    def of(place: str, error: RowError) -> BadRow:
        """The row at a place that raised an error."""
        unread = error.name if isinstance(error, UnreadFieldError) else ""
        return BadRow(place=place, reason=error.reason, message=str(error), unread=unread)


@dataclass(frozen=True, kw_only=True)
class SourceChunk:
    """A chunk and the number of its source in the recipe."""

    source: int
    chunk: AnyChunk


class Tag(Protocol):
    """Gives a conversation its class, condition and weights; `classes.tagging.Tagger` is one."""

    def __call__(self, conversation: Conversation, *, class_name: str | None) -> TaggedConversation:
        """Tag one conversation; class_name: of its source. Raises RowError."""


class ReadTurns(Protocol):
    """Finds class and text of a row that holds tokens; `prompt.turns.TurnReader` is one."""

    def __call__(self, tokens: TokenizedConversation, *, place: str, class_name: str | None) -> TaggedConversation:
        """Read one row; class_name: of its source. Raises RowError."""


def conversation_chunks(source: SourceSettings, *, template: str, where: str, sizes: ChunkSizes) -> Iterator[AnyChunk]:
    """Cut a source of any format into chunks, in order. template: its name, which files of tokens are checked for."""
    if source.row_format.holds_tokens:
        return tokenized_chunks(source, template, where=where)
    return sources.chunks(source, where=where, sizes=sizes)


def parse_rows(
    rows: Iterable[tuple[str, Any]],
    *,
    source: SourceSettings,
    scored_by: str | None = None,
    ignored: Collection[str] = (),
) -> Iterator[Conversation | BadRow]:
    """Read (place, row) pairs of text, without giving them a class. A row with several answers gives several.

    scored_by: the field whose quantiles decide the class, None where there is none. ignored: `data.ignore_fields`.
    """
    read = RowReader(source, scored_by=scored_by, ignored=ignored)
    for place, row in rows:
        try:
            yield from read(row, place)
        except RowError as error:
            yield BadRow.of(place, error)


def read_conversations(
    chunk: AnyChunk,
    *,
    source: SourceSettings,
    scored_by: str | None,
    tag: Tag,
    read_turns: ReadTurns | None,
    ignored: Collection[str],
) -> Iterator[TaggedConversation | BadRow]:
    """Read a chunk of any format, in order.

    scored_by, ignored: see `parse_rows`. read_turns: needed where the rows hold tokens, which come as
    `TaggedConversation.tokens`.
    """
    if isinstance(chunk, TokenizedChunk):
        assert read_turns is not None, "given for rows of tokens"
        yield from _from_tokens(chunk, source, read_turns)
        return
    for item in parse_rows(sources.read_chunk(chunk), source=source, scored_by=scored_by, ignored=ignored):
        if isinstance(item, BadRow):
            yield item
            continue
        try:
            yield tag(item, class_name=source.class_name)
        except RowError as error:
            yield BadRow.of(item.place, error)


def _from_tokens(
    chunk: TokenizedChunk, source: SourceSettings, read_turns: ReadTurns
) -> Iterator[TaggedConversation | BadRow]:
    for place, tokens in read_tokenized(chunk):
        try:
            if isinstance(tokens, RowError):
                raise tokens
            yield replace(read_turns(tokens, place=place, class_name=source.class_name), tokens=tokens)
        except RowError as error:
            yield BadRow.of(place, error)


def with_unique_ids(items: Iterable[C | BadRow]) -> Iterator[C | BadRow]:
    """The items of one source; a conversation whose id an earlier one has comes as a BadRow."""
    seen = SeenIds()
    for item in items:
        bad = None
        if not isinstance(item, BadRow):
            conversation = item.conversation if isinstance(item, TaggedConversation) else item
            if conversation.has_own_id:
                bad = seen.check(conversation.id, place=conversation.place)
        yield item if bad is None else bad


class SeenIds:
    """The ids of one source. A second conversation with an id is a bad row."""

    def __init__(self) -> None:
        self._seen: set[str] = set()

    def check(self, identifier: str, *, place: str) -> BadRow | None:
        """Note an id that a row names itself; a BadRow if an earlier row has it."""
        if identifier in self._seen:
            message = f"id `{identifier}` is used by an earlier row of this source; make it unique"
            return BadRow.of(place, RowError("duplicate_id", message))
        self._seen.add(identifier)
        return None
