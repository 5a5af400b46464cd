"""One raw row to its conversations: the source's format, and the fields around the messages."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from typing import Any
from uuid import UUID

from data_pipeline.conversation import Conversation, Message
from data_pipeline.errors import RowError
from data_pipeline.formats.chat import PLACES, refuse_placeholder
from data_pipeline.formats.fields import ANSWERS, INPUTS, PROMPTS, SYSTEMS, without
from data_pipeline.formats.known_keys import ALWAYS_HARMLESS, is_media
from data_pipeline.formats.marks import ROW_MARKS
from data_pipeline.formats.parts import tools_of, with_reasoning_of_tags
from data_pipeline.formats.row_format import ParsedRow
from data_pipeline.formats.unread import UnreadFieldError, content_leaves
from data_pipeline.formats.values import text_of, weight_of
from data_pipeline.read.columnar_rows import ColumnarRow, refuse_filled_nulls
from data_pipeline.settings.sources import SourceSettings
from data_pipeline.text_rules import shown
from data_pipeline.weight import LARGEST_WEIGHT

_MAY_BE_NAMES = frozenset(("user", "human", "assistant", "gpt"))  # of somebody, or of a model
_NUMBER = re.compile(r"\s*[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?\s*", re.ASCII)


class RowReader:
    """Reads the rows of one source. Raises RowError for everything that is not a conversation with an answer.

    scored_by: the field whose quantiles decide the row's class. ignored: dotted names of fields that are left out on
    purpose.
    """

    def __init__(self, source: SourceSettings, *, scored_by: str | None = None, ignored: Collection[str] = ()) -> None:
        row_format, self._fields = source.row_format, without(source.row_fields, ignored)
        assert row_format.parser is not None, "rows of tokens have their own reader, and `auto` is resolved before"
        self._source, self._format = source, row_format
        self._ignored = frozenset(ignored)
        self._parse = row_format.parser(self._fields, self._ignored)
        self._has_own_class = row_format.carries_class and not (source.has_class or scored_by)
        self._score_field = scored_by or source.reward_field
        self._kinds_of_turns = (Mapping,) if self._fields.role else (Mapping, str)
        self._read = frozenset(
            (
                *self._fields.row_keys,
                *(ROW_MARKS if self._fields.messages else ()),
                *(("condition",) if row_format.carries_class else ()),
                *(("winner",) if row_format.has_pairs else ()),
                *filter(None, (source.class_field, self._score_field)),
                *self._ignored,
            )
        )
        self._known = self._read | ALWAYS_HARMLESS
        self._ignores_media = any(map(is_media, self._ignored))

    def __call__(self, row: Any, place: str) -> Sequence[Conversation]:
        """The conversations of a row: one, or one for each of its answers."""
        if isinstance(row, RowError):
            raise row
        is_bare = isinstance(row, list) and bool(row and self._fields.messages)
        if not isinstance(row, Mapping) and not (is_bare and all(isinstance(m, self._kinds_of_turns) for m in row)):
            raise RowError("not_an_object", f"expected an object, found {shown(row)}")
        parsed = self._parse(row)
        if isinstance(row, ColumnarRow):
            refuse_filled_nulls(row, self._fields.tools)
        if isinstance(row, Mapping) and not row.keys() <= self._known:
            self._require_all_read(row, parsed)
        if self._ignores_media and isinstance(row, Mapping):
            self._refuse_places(row, parsed)
        given = {} if is_bare else row
        return [self._conversation(given, one, place, part) for one, part in zip(parsed, _parts(parsed), strict=True)]

    def _conversation(self, row: Mapping[str, Any], parsed: ParsedRow, place: str, part: str) -> Conversation:
        messages = parsed.messages
        refuse_placeholder(parsed.system, is_answer=False)
        for message in messages:
            refuse_placeholder(message.content, is_answer=message.role == "assistant")
        if not self._has_own_class:
            messages = self._format.messages_in_class(messages)
        if self._source.think_tags:
            messages = with_reasoning_of_tags(messages, self._format.name)
        if self._fields.row_weight is not None:
            messages = self._weighted(messages, row)
        if not any(message.role == "assistant" for message in messages):
            raise RowError("no_assistant_message", "no assistant message: nothing to learn from")
        own = row if parsed.own is None else parsed.own
        identifier = _identifier(row, self._fields.id)
        if part:
            place = f"{place}.{part}"
            identifier = None if identifier is None else f"{identifier}.{part}"
        return Conversation(
            id=place if identifier is None else identifier,
            place=place,
            messages=tuple(messages),
            system=parsed.system,
            class_value=self._class_value(own, parsed.answer),
            condition=_condition(row) if self._has_own_class else None,
            score=_score(own, self._score_field) if self._score_field else None,
            tools=tools_of(row.get(self._fields.tools)) if self._fields.tools else "",
            num_empty_cut=parsed.num_cut,
        )

    def _class_value(self, row: Mapping[str, Any], answer: str) -> str | None:
        source = self._source
        if source.answer_classes is not None:
            if answer not in source.answer_classes:
                raise RowError("unknown_class", f"`answer_classes` has no class for `{answer}`")
            found: str = source.answer_classes[answer]
            return found
        return _class_value(row, source.class_field) if source.class_field else None

    def _weighted(self, messages: Sequence[Message], row: Mapping[str, Any]) -> list[Message]:
        """The messages, with the weight of the row as a further factor of its answers."""
        name = self._fields.row_weight or ""
        factor = _number(row.get(name))
        weight = float(factor) if isinstance(factor, bool) else weight_of(factor, "row", name)
        if weight is None:
            return list(messages)
        return [
            replace(m, weight=weight * (1.0 if m.weight is None else m.weight)) if m.role == "assistant" else m
            for m in messages
        ]

    def _refuse_places(self, row: Mapping[str, Any], parsed: Sequence[ParsedRow]) -> None:
        """Raise RowError for a text with the place of an image that the row holds, and that the recipe ignores."""
        if not any(is_media(name) and row.get(name) for name in self._ignored):
            return
        for one in parsed:
            if any(mark in message.content for mark in PLACES for message in one.messages):
                raise RowError("unsupported_content", "a message holds the place of an image, video or sound")

    def _require_all_read(self, row: Mapping[str, Any], parsed: Sequence[ParsedRow]) -> None:
        """Raise UnreadFieldError for a field that may hold a part of the conversation, and that nothing reads.

        A value that the conversation holds anyway is not lost: many files repeat the prompt beside the messages.
        """
        for name, value, kind in [*content_leaves(row, "", self._read), *self._second_prompts(row)]:
            is_repeated = any(value == row.get(key) for key in self._fields.row_keys)
            if not (is_repeated or (isinstance(value, str) and _is_said(value, parsed))):
                raise UnreadFieldError(name, value, kind)

    def _second_prompts(self, row: Mapping[str, Any]) -> Iterator[tuple[str, Any, str]]:
        """Prompts, inputs, system texts and answers of a row that are not read: a single word may be what is asked.

        Beside an answer of several words, one of a single word is what a checker compares it with.
        """
        names = [*SYSTEMS, "instruction"] if self._fields.prompt is None else [*SYSTEMS, *PROMPTS, *INPUTS]
        answer = row.get(self._fields.answer or "")
        if isinstance(answer, str) and len(answer.split()) == 1:
            names += ANSWERS
        for name in names:
            value = row.get(name)
            kinds = str | int | float if name in INPUTS else str
            if name in self._read or name in _MAY_BE_NAMES or isinstance(value, bool):
                continue
            if isinstance(value, kinds) and str(value).strip():
                yield name, value, "an input" if name in INPUTS else "a second text of this kind"


def _parts(parsed: Sequence[ParsedRow]) -> list[str]:
    """What follows a row's place and id for each of its conversations; of two with one name (a tie), also a number."""
    names = [one.answer for one in parsed]
    if len(names) == 1:
        return [""]
    return [name if names.count(name) == 1 else f"{name}-{number}" for number, name in enumerate(names, 1)]


def _is_said(text: str, parsed: Sequence[ParsedRow]) -> bool:
    text = text.strip()
    return any(
        text == one.system.strip()
        or any(text in (message.content.strip(), message.reasoning.strip()) for message in one.messages)
        for one in parsed
    )


def parse_row(row: Any, *, place: str, source: SourceSettings) -> Conversation:
    """Read one raw row with one conversation; see RowReader."""
    [conversation] = RowReader(source)(row, place)
    return conversation


def _identifier(row: Mapping[str, Any], key: str | None) -> str | None:
    """The id that a row names, None where it names none."""
    value = row.get(key) if key else None
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if isinstance(value, UUID):
        value = str(value)
    if isinstance(value, Decimal):
        value = int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, float):
        if math.isnan(value):
            return None
        value = int(value) if value.is_integer() else value
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise RowError("wrong_type", f"{key}: expected text or a number, found {shown(value)}")
    return text_of(str(value), key or "id")


def _condition(row: Mapping[str, Any]) -> str:
    if "condition" not in row:
        raise RowError(
            "missing_key", 'key `condition` is missing; give it (`""` for none), or give the source a `class`'
        )
    return text_of(row["condition"], "condition")


def _field(row: Mapping[str, Any], field: str, meaning: str) -> Any:
    if field in row:  # a key with dots in it, as a table has that was made of objects
        return row[field]
    value: Any = row
    for key in field.split("."):
        if not isinstance(value, Mapping) or key not in value:
            raise RowError("missing_key", f"field `{field}`, which {meaning}, is missing")
        value = value[key]
    return value


def _number(value: Any) -> Any:
    """A number that is written as text, as in the cells of a table, or a decimal; any other value unchanged."""
    if isinstance(value, Decimal):
        return float(value)
    return float(value) if isinstance(value, str) and _NUMBER.fullmatch(value) else value


def _score(row: Mapping[str, Any], field: str) -> float:
    value = _number(_field(row, field, "holds the reward"))
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not -LARGEST_WEIGHT <= value <= LARGEST_WEIGHT:  # also false for NaN
        raise RowError(
            "invalid_reward", f"{field}: {shown(value)} is not a number from -{LARGEST_WEIGHT} to {LARGEST_WEIGHT}"
        )
    return float(value)


def _class_value(row: Mapping[str, Any], field: str) -> str:
    """The name of a class: text, a number (1.0 as `1`), or `true` and `false`."""
    value = _field(row, field, "names the class")
    name = class_text(value)
    if name is None:
        raise RowError(
            "wrong_type", f"{field}: expected the name of a class, found {shown(value)}; give the row one, or remove it"
        )
    return name


def class_text(value: Any) -> str | None:
    """A value of a row as the name of a class, None for one that can be none."""
    if isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, Decimal):
        value = float(value)
    if isinstance(value, float):
        return (str(int(value)) if value.is_integer() else repr(value)) if math.isfinite(value) else None
    return str(value) if isinstance(value, str | int) else None
