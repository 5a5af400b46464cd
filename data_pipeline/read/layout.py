"""Before rows are prepared: the layout that `format: auto` stands for, and fields that nothing would read.

Both look at some rows. Every row is compared with the layout, and all its fields are checked, when it is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from data_pipeline.errors import Problem, RowError, UserError, UserErrors
from data_pipeline.formats.detect import Layout, layout_of
from data_pipeline.formats.table import FORMATS
from data_pipeline.formats.unread import UnreadFieldError
from data_pipeline.read import sources
from data_pipeline.read.chunks import Chunk, LinesChunk, ParquetChunk
from data_pipeline.read.rows import RowReader
from data_pipeline.settings.data import DataSettings
from data_pipeline.settings.problems import HOLD_CONVERSATIONS, ignored_conversations
from data_pipeline.settings.sources import FieldSettings, SourceSettings
from data_pipeline.text_rules import shown

_MOST_CHUNKS = 64
_MOST_PARSED_CHUNKS = 64  # of files that have to be unpacked or parsed to be cut into chunks
_ROWS_PER_CHUNK = 200
_MOST_FIELDS = 30
_FIRST_CHUNKS = 4

Rows = Sequence[tuple[str, Any]]


@dataclass(frozen=True, kw_only=True)
class UnreadField:
    """A field that nothing reads. message: what it holds, and the remedy."""

    name: str
    place: str
    message: str


def resolved(data: DataSettings, *, say: Callable[[str], None] = lambda text: None) -> DataSettings:
    """The settings with a format instead of each `auto`. say: called with what was found, a source at a time.

    Raises UserError for a source in which no layout is found, or more than one.
    """
    if all(source.format != "auto" for source in data.sources):
        return data
    found = []
    for number, source in enumerate(data.sources):
        if source.format == "auto":
            source = resolved_source(source, data=data, where=f"data.sources.{number}")
            if names := ignored_conversations(source, data.ignore_fields):
                problem = f"`{names[0]}` holds the conversations of data.sources.{number} ({source.path})"
                raise UserError("data.ignore_fields", problem, "remove it")
            say(f"{source.path}: read as `{Layout(format=source.format, fields=source.row_fields)}`")
        found.append(source)
    return data.model_copy(update={"sources": found})


def resolved_source(source: SourceSettings, *, data: DataSettings, where: str) -> SourceSettings:
    """A source with the format and fields that its rows have, instead of `auto`. Raises UserError as `resolved`."""
    given = {} if source.fields is None else source.fields.model_dump(exclude_defaults=True)
    try:
        layout = found_layout(source.path, some_rows(source, where=where), given=given)
    except UserError as error:
        raise UserError(where, f"{error.place}: {error.problem}", error.remedy) from None
    found = in_layout(source, layout)
    if found.row_format.has_pairs and source.answer_classes is None:
        remedy = "give `answer_classes: {chosen: CLASS, rejected: CLASS}`"
        raise UserError(where, f"{source.path}: has two answers a row (`{layout}`)", remedy)
    if source.answer_classes is not None and not found.row_format.has_pairs:
        remedy = "give `class` instead of `answer_classes`"
        raise UserError(where, f"{source.path}: has one answer a row (`{layout}`)", remedy)
    if not (source.has_class or data.classes_from is not None or found.row_format.carries_class):
        raise UserError(where, f"{source.path}: its rows name no class (`{layout}`)", "give `class` or `class_field`")
    return found


def in_layout(source: SourceSettings, layout: Layout) -> SourceSettings:
    """A source with the format and the fields of a layout."""
    changes: dict[str, Any] = layout.fields.changes(FORMATS[layout.format].fields)
    fields = FieldSettings.model_construct(**changes) if changes else None
    return source.model_copy(update={"format": layout.format, "fields": fields})


def found_layout(path: str, rows: Rows, *, given: Mapping[str, Any] | None = None) -> Layout:
    """The layout of some rows. given: names of keys that the recipe gives.

    Raises UserError where the rows have no known layout, or several.
    """
    given = given or {}
    seen: dict[Layout, str] = {}
    problem = ("", "it holds no rows")
    for place, row in rows:
        if isinstance(row, RowError):
            problem = problem if problem[0] else (place, str(row))
            continue
        layout = layout_of(_named(row, given) if given else row)
        if isinstance(layout, str):
            problem = problem if problem[0] else (place, layout)
        else:
            seen.setdefault(layout, place)
    layouts = _joined(seen)
    if not layouts:
        _require_given_keys(path, rows, given)
        found = ": ".join(filter(None, problem))
        raise UserError(path, f"no known layout: {found}", "docs/data_formats.md shows a row of each format")
    if len(layouts) > 1:
        named = "; ".join(f"`{layout}` from {place}" for layout, place in islice(layouts.items(), 4))
        raise UserError(path, f"holds rows of several layouts: {named}", "give each layout its own file and source")
    layout = next(iter(layouts))
    return replace(layout, fields=replace(layout.fields, **given))


def _require_given_keys(path: str, rows: Rows, given: Mapping[str, Any]) -> None:
    """Raise UserError where the recipe names a key for the conversation that no row has."""
    of_rows = [(place, row) for place, row in rows if isinstance(row, dict)]
    for field in HOLD_CONVERSATIONS if of_rows else ():
        if field in given and not any(given[field] in row for _, row in of_rows):
            place, row = of_rows[0]
            found = ", ".join(map(shown, list(row)[:10])) or "none"
            problem = f"{place}: `fields` says `{field}: {given[field]}`, and no row has this key; found: {found}"
            raise UserError(path, problem, "name a key of the row itself; dots do not reach into objects here")


def _named(row: Any, given: Mapping[str, Any]) -> Any:
    """A row with the usual names instead of those that a recipe gives, as far as they decide the layout."""
    usual = {"messages": "messages", "prompt": "prompt", "answer": "completion", "input": "input", "answers": "answers"}
    usual |= {"chosen": "chosen", "rejected": "rejected", "system": "system"}
    if not isinstance(row, dict):
        return row
    names = {given[field]: name for field, name in usual.items() if field in given}
    # where the recipe names what holds the conversation, nothing else does
    hidden = set(usual.values()) if names.keys() - {given.get("system")} else set(names.values())
    named = {names.get(key, key): value for key, value in row.items() if key in names or key not in hidden}
    inside = {given[field]: field for field in ("role", "content") if field in given}
    if inside and isinstance(named.get("messages"), list):
        named["messages"] = [
            {inside.get(key, key): value for key, value in turn.items()} if isinstance(turn, dict) else turn
            for turn in named["messages"]
        ]
    return named


def _joined(seen: dict[Layout, str]) -> dict[Layout, str]:
    """Layouts that differ only in an input or a system text, which not every row has, as one."""
    joined: dict[Layout, str] = {}
    for layout, place in seen.items():
        for other in list(joined):
            one = _one_of(other, layout)
            if one is not None:
                joined = {one if known == other else known: first for known, first in joined.items()}
                break
        else:
            joined[layout] = place
    return joined


def _one_of(first: Layout, second: Layout) -> Layout | None:
    fields = first.fields
    if first.format != second.format or replace(second.fields, input=fields.input, system=fields.system) != fields:
        return None
    systems = {fields.system, second.fields.system}
    return replace(
        first,
        fields=replace(
            fields,
            input=fields.input or second.fields.input,
            system="system_prompt" if "system_prompt" in systems else fields.system,
        ),
    )


def some_rows(source: SourceSettings, *, where: str) -> Rows:
    """Rows from chunks that are spread over a source. Rows that come parsed are taken from its beginning."""
    kept: list[Chunk] = []
    stride = 1
    for number, chunk in enumerate(sources.chunks(source, where=where)):
        if not isinstance(chunk, LinesChunk | ParquetChunk) and number >= _MOST_PARSED_CHUNKS:
            break
        if number % stride == 0:
            kept.append(chunk)
        if len(kept) == 2 * _MOST_CHUNKS:
            kept, stride = kept[::2], 2 * stride
    return [row for chunk in kept for row in islice(sources.read_chunk(chunk), _ROWS_PER_CHUNK)]


def first_rows(source: SourceSettings, *, where: str) -> Rows:
    """Rows from the beginning of a source, which cost little to read."""
    chunks = islice(sources.chunks(source, where=where), _FIRST_CHUNKS)
    return [row for chunk in chunks for row in islice(sources.read_chunk(chunk), _ROWS_PER_CHUNK)]


def require_fields_read(data: DataSettings, *, say: Callable[[str], None]) -> None:
    """Raise UserErrors for fields that may hold a part of the conversations and that nothing reads.

    All of them at once, by the first rows of each source; `auto` is resolved before. say: called with the names of
    `data.ignore_fields` that none of these rows has.
    """
    problems, names = [], dict[str, None]()
    unused = list(data.ignore_fields)
    for number, source in enumerate(data.sources):
        if source.is_tokenized:
            continue
        where = f"data.sources.{number}"
        rows = first_rows(source, where=where)
        unused = list(unused_names(unused, rows))
        for found in unread_fields(source, rows, scored_by=data.scored_by, ignored=data.ignore_fields):
            problems.append(Problem(place=found.place, problem=found.message))
            names[found.name] = None
    if problems:
        remedy = f"To leave out all of them: `data.ignore_fields: [{', '.join([*data.ignore_fields, *names])}]`"
        raise UserErrors("data.sources", "fields that would not be trained on", problems, remedy)
    if unused:
        say(f"data.ignore_fields: none of the first rows has {', '.join(f'`{name}`' for name in unused)}")


def unread_fields(
    source: SourceSettings,
    rows: Iterable[tuple[str, Any]],
    *,
    scored_by: str | None = None,
    ignored: Sequence[str] = (),
) -> list[UnreadField]:
    """The fields of some rows that nothing reads, each with its first place. scored_by, ignored: see RowReader."""
    found: dict[str, UnreadField] = {}
    read = RowReader(source, scored_by=scored_by, ignored=ignored)
    for place, row in rows:
        while len(found) < _MOST_FIELDS:
            try:
                read(row, place)
            except UnreadFieldError as error:
                if error.name in found:
                    break
                found[error.name] = UnreadField(name=error.name, place=place, message=str(error))
                read = RowReader(source, scored_by=scored_by, ignored=[*ignored, *found])
            except RowError:
                break  # the preparation reports it
            else:
                break
    return list(found.values())


def unused_names(names: Iterable[str], rows: Rows) -> Iterator[str]:
    """The names of `data.ignore_fields` that no row has."""
    for name in names:
        if not any(_has(row, name.split(".")) for _, row in rows):
            yield name


def _has(value: Any, keys: Sequence[str]) -> bool:
    if not keys:
        return True
    if isinstance(value, list):
        return any(_has(entry, keys) for entry in value)
    return isinstance(value, dict) and keys[0] in value and _has(value[keys[0]], keys[1:])
