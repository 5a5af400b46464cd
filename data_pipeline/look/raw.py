"""What raw files hold, seen before a recipe names them: format, fields that could name a class, scores, lengths."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, get_args

import numpy as np

from data_pipeline.classes.tagging import tag
from data_pipeline.conversation import Conversation, TaggedConversation
from data_pipeline.errors import RowError, UserError, duplicate_id
from data_pipeline.ledger import Ledger
from data_pipeline.prompt.templates import Template, render
from data_pipeline.prompt.tokenization import TemplateTokenizer, TokenizerSpec
from data_pipeline.read import sources
from data_pipeline.read.formats import parse_row
from data_pipeline.read.openchat_parquet import is_tokenized
from data_pipeline.read.sources import Chunk
from data_pipeline.settings import SourceSettings, TextFormat

FORMATS: tuple[TextFormat, ...] = get_args(TextFormat)
SAMPLED_ROWS = 20_000
MOST_CLASSES = 12  # a field with more values than that does not name classes
_MOST_CHUNKS = 32  # that a sample comes from, up to twice as many
_TOKENIZED_CONVERSATIONS = 2_000
_LONGEST_CLASS_NAME = 64
_DEEPEST_FIELD = 3
_WITHOUT_CLASS = SourceSettings(path="row", format="openchat")
_CONTENT_KEYS = frozenset(
    (
        "id",
        "items",
        "conversations",
        "messages",
        "instruction",
        "input",
        "output",
        "history",
        "system",
        "prompt",
        "text",
    )
)
_SCORE_NAME = re.compile(r"score|reward|rating|rank|votes?$|grade", re.I)


@dataclass(frozen=True, kw_only=True)
class RowSample:
    """Rows of a source with their places, spread evenly over it. num_rows: of the whole source."""

    rows: Sequence[tuple[str, Any]]
    num_rows: int


@dataclass(kw_only=True)
class FieldLook:
    """A field of the rows beside their messages (dots go deeper).

    num_rows: sampled rows that have it. values: how often each value was seen, None where there are too many to name
    classes. numbers: smallest and largest value, None where it does not look like a score.
    """

    num_rows: int = 0
    values: Counter[str] | None = field(default_factory=Counter)
    is_name: bool = True  # every value is text or a whole number, as the name of a class has to be
    numbers: tuple[float, float] | None = None
    _is_score: bool = True
    _has_fraction: bool = False

    def add(self, value: Any) -> None:
        """Count one row's value."""
        self.num_rows += 1
        self.is_name &= isinstance(value, str | int) and not isinstance(value, bool)
        if self.values is not None:
            self.values[str(value)] += 1
            if len(self.values) > MOST_CLASSES or len(str(value)) > _LONGEST_CLASS_NAME:
                self.values = None
        self._is_score &= isinstance(value, int | float) and not isinstance(value, bool)
        if self._is_score:
            self._has_fraction |= isinstance(value, float)
            low, high = self.numbers or (value, value)
            self.numbers = (min(low, value), max(high, value))

    def finish(self, name: str) -> None:
        """Forget the numbers of what is no score: counts and identifiers are whole numbers, too."""
        if not self._is_score or not (self._has_fraction or _SCORE_NAME.search(name.rpartition(".")[2])):
            self.numbers = None


@dataclass(frozen=True, kw_only=True)
class SourceLook:
    """What was seen in a source.

    ledger: of the sampled rows; its `bad` counts those that cannot be read, by reason. roles: messages of each role.
    conversations: the sampled rows that can be read. carries_classes: OpenChat's rows, each with its condition and
    weights.
    fields: by name, those that could name a class or hold a score. prompts: system texts with first prompts, which the
    validation split keeps together.
    """

    path: str
    format: TextFormat
    num_rows: int
    ledger: Ledger
    conversations: Sequence[Conversation]
    carries_classes: bool
    roles: Mapping[str, int]
    fields: Mapping[str, FieldLook]
    prompts: frozenset[tuple[str, str]]

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
            and seen.num_rows == len(self.conversations)
            and seen.values is not None
            and len(seen.values) > 1
        ]

    def characters(self) -> np.ndarray:
        """int64[conversations]: characters of all messages and the system text."""
        lengths = (len(c.system) + sum(len(m.content) for m in c.messages) for c in self.conversations)
        return np.fromiter(lengths, dtype=np.int64, count=len(self.conversations))


def sample_rows(source: SourceSettings, *, where: str, most_rows: int = SAMPLED_ROWS) -> RowSample:
    """About `most_rows` rows from chunks that lie evenly over the source. Raises UserError for files that cannot be
    read.
    """
    kept: list[Chunk] = []
    stride, num_rows = 1, 0
    for number, chunk in enumerate(sources.chunks(source, where=where)):
        num_rows += sources.count_rows(chunk)
        if number % stride == 0:
            kept.append(chunk)
        if len(kept) == 2 * _MOST_CHUNKS:
            kept, stride = kept[::2], 2 * stride
    per_chunk = -(-most_rows // max(1, len(kept)))
    return RowSample(
        rows=[row for chunk in kept for row in islice(sources.read_chunk(chunk), per_chunk)], num_rows=num_rows
    )


def look_at(path: str, *, format: TextFormat | None = None, most_rows: int = SAMPLED_ROWS) -> SourceLook:
    """Look at a file, a folder or a pattern. format: None to find it by trying each parser on the sampled rows.

    Raises UserError for a source that is empty, and where the format is unknown, mixed or ambiguous.
    """
    probe = SourceSettings.model_validate({"path": path, "format": format or FORMATS[0], "class": "probe"})
    if sources.is_dataset(probe):
        raise UserError(path, "only files are looked at", "write a source for a Hub dataset or a saved one by hand")
    if tokenized := [file for file in sources.source_files(probe, where="FILE") if is_tokenized(file)]:
        raise UserError(
            path,
            f"{tokenized[0].name} holds conversations that OpenChat has tokenized, without their text",
            "write the source by hand, with `format: openchat_tokenized` (docs/from-openchat.md)",
        )
    sample = sample_rows(probe, where="FILE", most_rows=most_rows)
    if not sample.rows:
        raise UserError(path, "holds no rows")
    found: dict[TextFormat, dict[int, Conversation]] = {}
    errors: dict[TextFormat, dict[int, RowError]] = {}
    for candidate in FORMATS if format is None else (format,):
        found[candidate], errors[candidate] = _parse_all(sample, probe.model_copy(update={"format": candidate}))
    chosen = _one_format(path, sample, found, errors)
    ledger = Ledger(num_read=len(sample.rows))
    conversations: list[Conversation] = []
    readable_rows = []
    seen_ids: set[str] = set()
    for number, (place, row) in enumerate(sample.rows):
        conversation = found[chosen].get(number)
        if conversation is None:
            ledger.drop(errors[chosen][number].reason, place, str(errors[chosen][number]), bad=True)
        elif conversation.id in seen_ids:
            twice = duplicate_id(conversation.id)
            ledger.drop(twice.reason, place, str(twice), bad=True)
        else:
            seen_ids.add(conversation.id)
            conversations.append(conversation)
            readable_rows.append(row)
    ledger.num_kept = len(conversations)
    prompts = {(c.system, next((m.content for m in c.messages if m.role == "user"), c.id)) for c in conversations}
    return SourceLook(
        path=path,
        format=chosen,
        num_rows=sample.num_rows,
        ledger=ledger,
        conversations=conversations,
        carries_classes=chosen == "openchat" and all(map(_carries_class, readable_rows)),
        roles=_roles(conversations),
        fields=_fields(readable_rows),
        prompts=frozenset(prompts),
    )


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


def under_inference_condition(conversation: Conversation, template: Template) -> TaggedConversation:
    """A conversation whose class is not known, as the template would ask for an answer."""
    weights = tuple(1.0 if message.role == "assistant" else 0.0 for message in conversation.messages)
    return TaggedConversation(
        conversation=conversation, class_name="", condition=template.inference_condition, message_weights=weights
    )


def token_lengths(
    conversations: Sequence[TaggedConversation], template: Template, tokenizer: TokenizerSpec
) -> np.ndarray:
    """int64: tokens of up to 2,000 conversations, evenly taken."""
    step = -(-len(conversations) // _TOKENIZED_CONVERSATIONS)
    rendered = [render(item, template, bos_token=tokenizer.bos_token) for item in conversations[:: max(1, step)]]
    tokenized = TemplateTokenizer(tokenizer).tokenize(rendered)
    return np.array([len(tokens.input_ids) for tokens in tokenized if not isinstance(tokens, RowError)], dtype=np.int64)


def _parse_all(sample: RowSample, source: SourceSettings) -> tuple[dict[int, Conversation], dict[int, RowError]]:
    """Conversations and errors by the row's number in the sample."""
    found, errors = {}, {}
    for number, (place, row) in enumerate(sample.rows):
        try:
            found[number] = parse_row(row, place=place, source=source)
        except RowError as error:
            errors[number] = error
    return found, errors


def _one_format(
    path: str,
    sample: RowSample,
    found: Mapping[TextFormat, Mapping[int, Conversation]],
    errors: Mapping[TextFormat, Mapping[int, RowError]],
) -> TextFormat:
    """The format that reads the most rows, where no other one reads a row that it does not, or all that it does."""
    best = max(found, key=lambda name: len(found[name]))
    if not found[best]:
        lines = [f"{path}: none of {len(sample.rows)} rows is a conversation in a known format; {sample.rows[0][0]}:"]
        reasons = {name: str(errors[name][0]) for name in found}
        if len(set(reasons.values())) == 1:
            lines.append(f"  {reasons[best]}")
        else:
            lines += [f"  as {name}: {reason}" for name, reason in reasons.items()]
        raise UserError("\n".join([*lines, "docs/data_formats.md shows a row of each format"]))
    mixed = {name: len(rows.keys() - found[best].keys()) for name, rows in found.items()}
    if any(mixed.values()):
        counts = ", ".join(f"{num:,} {name}" for name, num in {**mixed, best: len(found[best])}.items() if num)
        other = next(name for name, num in mixed.items() if num)
        example = sample.rows[min(found[other].keys() - found[best].keys())][0]
        raise UserError(
            path,
            f"holds rows of several formats ({counts}; first {other} row: {example})",
            "give each format a file of its own",
        )
    equals = [name for name, rows in found.items() if rows.keys() == found[best].keys()]
    if len(equals) > 1:
        raise UserError(
            path,
            f"its rows can be read as {' and as '.join(equals)}",
            f"say which is meant, for example `--format {path}={equals[0]}`",
        )
    return best


def _carries_class(row: Mapping[str, Any]) -> bool:
    """Whether an OpenChat row has a condition and weights of its own, as a source without a class needs them."""
    try:
        tag(parse_row(row, place="row", source=_WITHOUT_CLASS), class_name=None, classes={})
    except RowError:
        return False
    return True


def _leaves(row: Mapping[str, Any], prefix: str = "", depth: int = 1) -> Iterator[tuple[str, Any]]:
    """(name, value) of the fields that hold one value, beside the conversation itself."""
    for key, value in row.items():
        if (depth == 1 and key in _CONTENT_KEYS) or "." in key:
            continue
        if isinstance(value, Mapping):
            if depth < _DEEPEST_FIELD:
                yield from _leaves(value, f"{prefix}{key}.", depth + 1)
        elif isinstance(value, str | int | float):
            yield f"{prefix}{key}", value
