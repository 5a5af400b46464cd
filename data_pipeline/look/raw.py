"""What raw files hold, seen before a recipe names them: format, fields that could name a class, scores, lengths."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from data_pipeline.classes.tagging import tag
from data_pipeline.conversation import Conversation, TaggedConversation
from data_pipeline.errors import RowError, UserError
from data_pipeline.formats.detect import Layout
from data_pipeline.formats.preference import ANSWERS
from data_pipeline.formats.table import FORMATS
from data_pipeline.held_out import prompt_of
from data_pipeline.ledger import Tally
from data_pipeline.path_keys import written_path
from data_pipeline.prompt.prompt_format import AnyTemplate, renderer_of
from data_pipeline.prompt.tokenization import TemplateTokenizer, TokenizerSpec
from data_pipeline.read import sources
from data_pipeline.read.conversations import BadRow, parse_rows, with_unique_ids
from data_pipeline.read.layout import UnreadField, found_layout, in_layout, unread_fields
from data_pipeline.read.openchat_parquet import is_tokenized
from data_pipeline.read.rows import class_text, parse_row
from data_pipeline.read.sample import sampled_rows, spread_sample
from data_pipeline.settings.sources import SourceSettings

SAMPLED_ROWS = 20_000
MOST_CLASSES = 12  # a field with more values than that does not name classes
_TOKENIZED_CONVERSATIONS = 2_000
_TOKENIZED_CHARACTERS = 20_000_000
_SEED = 0
_LONGEST_CLASS_NAME = 64
_DEEPEST_FIELD = 3
# Fields that hold the conversation in some format cannot name a class, whatever the format of the file.
_CONTENT_KEYS = frozenset(("id", "system", "prompt", "text")).union(*(f.fields.row_keys for f in FORMATS.values()))
_SCORE_NAME = re.compile(r"score|reward|rating|rank|votes?$|grade", re.I)


@dataclass(kw_only=True)
class FieldLook:
    """A field of the rows other than their messages (dots go deeper).

    num_rows: sampled rows that have it. values: how often each value was seen, None where there are too many to name
    classes. numbers: smallest and largest value, None where it does not look like a score.
    """

    num_rows: int = 0
    values: Counter[str] | None = field(default_factory=Counter)
    is_name: bool = True  # every value is text, a whole number or a truth value, as the name of a class has to be
    numbers: tuple[float, float] | None = None
    _is_score: bool = True
    _has_fraction: bool = False

    def add(self, value: Any) -> None:
        """Count one row's value."""
        self.num_rows += 1
        name = class_text(value) or str(value)
        self.is_name &= isinstance(value, str | int) or (isinstance(value, float) and value.is_integer())
        if self.values is not None:
            self.values[name] += 1
            if len(self.values) > MOST_CLASSES or len(name) > _LONGEST_CLASS_NAME:
                self.values = None
        self._is_score &= isinstance(value, int | float) and not isinstance(value, bool)
        if self._is_score:
            self._has_fraction |= isinstance(value, float)
            low, high = self.numbers or (value, value)
            self.numbers = (min(low, value), max(high, value))

    def finish(self, name: str) -> None:
        """Forget the numbers of a field that is not a score: counts and identifiers are also whole numbers."""
        if not self._is_score or not (self._has_fraction or _SCORE_NAME.search(name.rpartition(".")[2])):
            self.numbers = None


@dataclass(frozen=True, kw_only=True)
class SourceLook:
    """What was seen in a source.

    ledger: of the sampled rows; its `bad` counts those that cannot be read, by reason. roles: messages of each role.
    conversations: those of the sampled rows that can be read, num_readable_rows; a row may have several, and counts for
    each answer of a list. unread: fields that may hold a part of them and that nothing reads. carries_classes: every
    row has its own condition and weights.
    fields: by name, those that could name a class or hold a score. prompts: system texts with first prompts, which the
    validation split keeps together.
    """

    path: str
    layout: Layout
    num_rows: int
    ledger: Tally
    conversations: Sequence[Conversation]
    num_readable_rows: int
    unread: Sequence[UnreadField]
    carries_classes: bool
    roles: Mapping[str, int]
    fields: Mapping[str, FieldLook]
    prompts: frozenset[tuple[str, str]]

    @property
    def format(self) -> str:
        """The name of its format."""
        return self.layout.format

    @property
    def has_pairs(self) -> bool:
        """Whether a row has a better and a worse answer."""
        return FORMATS[self.format].has_pairs

    @property
    def num_sampled(self) -> int:
        """Rows that were looked at."""
        return self.ledger.num_read

    @property
    def num_bad(self) -> int:
        """Sampled rows that cannot be read."""
        return sum(self.ledger.bad.values())

    def class_fields(self) -> list[str]:
        """Fields that may serve as `class_field`: a name in every readable row, and between 2 and MOST_CLASSES
        names.
        """
        return [
            name
            for name, seen in self.fields.items()
            if seen.is_name
            and seen.num_rows == self.num_readable_rows
            and seen.values is not None
            and len(seen.values) > 1
        ]

    def characters(self) -> np.ndarray:
        """int64[conversations]: characters of all messages and the system text."""
        lengths = (len(c.system) + sum(len(m.content) for m in c.messages) for c in self.conversations)
        return np.fromiter(lengths, dtype=np.int64, count=len(self.conversations))


def look_at(path: str, *, format: str | None = None, most_rows: int = SAMPLED_ROWS) -> SourceLook:
    """Look at a file, a folder or a pattern. format: None to find it by the keys of the sampled rows.

    Raises UserError for a source that is empty, and where the format is unknown or mixed.
    """
    probe = _probe(path, format or "auto")
    if sources.is_dataset(probe):
        raise UserError(path, "only files can be looked at", "write the source of a Hub dataset or a saved one by hand")
    if tokenized := [file for file in sources.source_files(probe, where="FILE") if is_tokenized(file)]:
        raise UserError(
            path,
            f"{tokenized[0].name} holds conversations that OpenChat has tokenized, without their text",
            "write the source by hand, with `format: openchat_tokenized` (docs/from-openchat.md)",
        )
    sample = spread_sample(sources.chunks(probe, where="FILE"), most_rows=most_rows)
    rows = sampled_rows(sample)
    if not rows:
        raise UserError(path, "holds no rows")
    layout = Layout(format=probe.format, fields=probe.row_fields) if format else found_layout(path, rows)
    return _look(path, layout, rows, num_rows=sample.num_rows)


def _probe(path: str, format: str) -> SourceSettings:
    """A source of a format, whose classes are not known yet."""
    classes = {"answer_classes": {name: name for name in ANSWERS}} if FORMATS[format].has_pairs else {"class": "probe"}
    return SourceSettings.model_validate({"path": written_path(path), "format": format, **classes})


def _look(path: str, layout: Layout, rows: Sequence[tuple[str, Any]], *, num_rows: int) -> SourceLook:
    source = in_layout(_probe(path, layout.format), layout)
    unread = unread_fields(source, rows)
    tally, conversations, readable_rows = _readable(source, rows, ignored=[field.name for field in unread])
    if not conversations:
        reasons = "\n".join(f"  {examples[0]}" for examples in tally.examples.values())
        raise UserError(
            path,
            f"none of {len(rows)} rows is a conversation in `{layout}`:\n{reasons}\n"
            "docs/data_formats.md shows a row of each format",
        )
    carries_class = FORMATS[layout.format].carries_class and all(
        _carries_class(row, layout.format) for row in readable_rows
    )
    return SourceLook(
        path=path,
        layout=layout,
        num_rows=num_rows,
        ledger=tally,
        conversations=conversations,
        num_readable_rows=len(readable_rows),
        unread=unread,
        carries_classes=carries_class,
        roles=_roles(conversations),
        fields=_fields(readable_rows),
        prompts=frozenset(map(prompt_of, conversations)),
    )


def _readable(
    source: SourceSettings, rows: Sequence[tuple[str, Any]], *, ignored: Sequence[str]
) -> tuple[Tally, list[Conversation], list[Any]]:
    """What can be read: counts, conversations, and the raw rows that they are from, one for each of several answers."""
    tally = Tally()
    conversations: list[Conversation] = []
    readable_rows: list[Any] = []
    by_place = dict(rows)
    for item in with_unique_ids(parse_rows(rows, source=source, ignored=ignored)):
        tally.num_read += 1
        if isinstance(item, BadRow):
            tally.drop(item.reason, item.place, item.message, bad=True)
            continue
        conversations.append(item)
        place, _, part = item.place.rpartition(".")
        row = by_place.get(item.place) or by_place[place]
        if answers := source.row_fields.answers:  # names of fields reach into each of them
            readable_rows.append({**row, answers: row[answers][int(part) - 1 if place in by_place else 0]})
        elif not readable_rows or readable_rows[-1] is not row:
            readable_rows.append(row)
    tally.num_kept = len(conversations)
    return tally, conversations, readable_rows


def _roles(conversations: Sequence[Conversation]) -> dict[str, int]:
    roles = Counter(message.role for c in conversations for message in c.messages)
    return {
        "system": sum(bool(c.system) for c in conversations),
        "user": roles["user"],
        "assistant": roles["assistant"],
    }


def _fields(rows: Sequence[Mapping[str, Any]]) -> dict[str, FieldLook]:
    """The fields that could name a class or hold a score."""
    fields: dict[str, FieldLook] = {}
    for row in rows:
        for name, value in _leaves(row):
            fields.setdefault(name, FieldLook()).add(value)
    for name, seen in fields.items():
        seen.finish(name)
    return {name: seen for name, seen in fields.items() if seen.values is not None or seen.numbers is not None}


def under_inference_condition(conversation: Conversation, template: AnyTemplate) -> TaggedConversation:
    """A conversation whose class is not known, under the condition that the template asks for answers with."""
    return TaggedConversation(
        conversation=conversation,
        class_name="",
        condition=template.inference_condition,
        message_weights=own_factors(conversation),
    )


def own_factors(conversation: Conversation) -> tuple[float, ...]:
    """For each message, the factor of its class's weight that the row gives: 0 where the assistant did not write it."""
    return tuple(
        (1.0 if message.weight is None else message.weight) if message.role == "assistant" else 0.0
        for message in conversation.messages
    )


def token_lengths(
    conversations: Sequence[TaggedConversation], template: AnyTemplate, tokenizer: TokenizerSpec
) -> np.ndarray:
    """int64: tokens of all conversations that hold them. Of those that hold text: of all, where they have at most
    20,000,000 characters, which takes seconds; otherwise of 2,000 of them at random, always the same ones.
    """
    own = [len(item.tokens.input_ids) for item in conversations if item.tokens is not None]
    if own:
        return np.array(own, dtype=np.int64)
    taken = _to_tokenize([item.conversation for item in conversations])
    render = renderer_of(template, tokenizer)
    rendered = []
    for item in (conversations[number] for number in taken):
        with suppress(RowError):  # the preparation reports it
            rendered += [one.segments for one in render(item)]
    tokenized = TemplateTokenizer(tokenizer).tokenize(rendered)
    return np.array([len(tokens.input_ids) for tokens in tokenized if not isinstance(tokens, RowError)], dtype=np.int64)


def _to_tokenize(conversations: Sequence[Conversation]) -> Sequence[int]:
    """Positions of the conversations to tokenize."""
    num_characters = sum(len(c.system) + sum(len(m.content) for m in c.messages) for c in conversations)
    if num_characters <= _TOKENIZED_CHARACTERS or len(conversations) <= _TOKENIZED_CONVERSATIONS:
        return range(len(conversations))
    random = np.random.default_rng(_SEED)
    positions: list[int] = np.sort(
        random.choice(len(conversations), size=_TOKENIZED_CONVERSATIONS, replace=False)
    ).tolist()
    return positions


def _carries_class(row: Mapping[str, Any], row_format: str) -> bool:
    """Whether a row has its own condition and weights, as a source without a class needs them."""
    source = SourceSettings(path="row", format=row_format)
    try:
        tag(parse_row(row, place="row", source=source), class_name=None, classes={})
    except RowError:
        return False
    return True


def _leaves(row: Mapping[str, Any], prefix: str = "", depth: int = 1) -> Iterator[tuple[str, Any]]:
    """(name, value) of the fields that hold one value, without the conversation itself."""
    if not isinstance(row, Mapping):
        return
    for key, value in row.items():
        if (depth == 1 and key in _CONTENT_KEYS and not isinstance(value, Mapping)) or "." in key:
            continue
        if isinstance(value, Mapping):
            if depth < _DEEPEST_FIELD:
                yield from _leaves(value, f"{prefix}{key}.", depth + 1)
        elif isinstance(value, str | int | float):
            yield f"{prefix}{key}", value
