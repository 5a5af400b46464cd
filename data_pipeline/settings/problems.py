"""What is wrong with a `data` section whose keys are right one by one: sources, classes and rewards that do not fit.

Each function gives sentences that begin with the key inside `data`; all of them are reported at once.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING

from data_pipeline.class_names import class_name_problem, class_spellings
from data_pipeline.settings.classes import ClassSettings
from data_pipeline.settings.sources import SourceSettings
from data_pipeline.text_rules import quoted

if TYPE_CHECKING:
    from data_pipeline.settings.data import DataSettings

HOLD_CONVERSATIONS = ("messages", "prompt", "answer", "chosen", "rejected", "answers")  # of `fields`


def ignored_conversations(source: SourceSettings, ignored: Collection[str]) -> list[str]:
    """The names among `data.ignore_fields` that hold the conversations of a source, or role and text of a message."""
    fields = source.row_fields
    names = {getattr(fields, key) for key in HOLD_CONVERSATIONS}
    names |= {f"{fields.messages}.{key}" for key in (fields.role, fields.content) if fields.messages and key}
    return sorted(name for name in names if name in ignored)


def problems_of(data: DataSettings) -> Iterator[str]:
    """All of them, in the order in which they are reported."""
    for name in data.classes:
        if (problem := class_name_problem(name)) is not None:
            yield f"classes: the name {quoted(name)} {problem}"
    yield from _rewards(data)
    yield from _quantiles(data)
    yield from _tokenized(data)
    for number, source in enumerate(data.sources):
        yield from _source(data, source, f"sources.{number}")


def _rewards(data: DataSettings) -> Iterator[str]:
    """Every class gets its weight in one way, and beta and clip are there where they are needed."""
    in_rows = any(source.reward_field is not None for source in data.sources)
    if data.beta is None and (in_rows or data.classes_from or any(c.reward is not None for c in data.classes.values())):
        yield "`beta` is missing: rewards need it (OpenChat's weights 1.0 and 0.1 are beta 0.4342945)"
    if data.reward_clip is not None and not data.reward_clip[0] < data.reward_clip[1]:
        yield f"reward_clip: {data.reward_clip} is not [low, high] with low < high"
    if data.reward_clip is not None and not in_rows:
        yield "reward_clip: no source has a `reward_field`"
    for name, spec in data.classes.items():
        yield from _reward_of_class(data, name, spec)


def _reward_of_class(data: DataSettings, name: str, spec: ClassSettings) -> Iterator[str]:
    feeding = [s for s in data.sources if s.class_name == name or s.class_field is not None]
    feeding += [s for s in data.sources if name in (s.answer_classes or {}).values()]
    feeding += [s for s in data.sources if s.class_name is None and s.is_tokenized]
    in_row = [source.reward_field is not None or source.is_tokenized for source in feeding]
    has_own = spec.reward is not None or spec.weight is not None
    if has_own and any(s.reward_field is not None and s.class_name == name for s in feeding):
        yield f"classes.{name}: has its own `reward` or `weight`, and a source with `reward_field`; keep one"
    if not has_own and not (in_row and all(in_row)):
        yield f"classes.{name}: give `reward` or `weight`, or a `reward_field` to each of its sources"


def _quantiles(data: DataSettings) -> Iterator[str]:
    """`classes_from` is the only one that decides class and reward."""
    if data.classes_from is None:
        return
    if data.classes:
        yield "classes_from: makes the classes, instead of `classes`; remove one of them"
    for number, source in enumerate(data.sources):
        if source.has_class or source.reward_field is not None:
            yield (
                f"sources.{number}: `classes_from` decides class and reward; remove `class`, `class_field` and "
                "`reward_field`"
            )


def _tokenized(data: DataSettings) -> Iterator[str]:
    """Nothing is asked for that cannot be done with rows that hold tokens instead of text."""
    numbers = [number for number, source in enumerate(data.sources) if source.is_tokenized]
    if not numbers:
        return
    if data.classes_from is not None:
        yield f"sources.{numbers[0]}: tokenized rows have no score; `classes_from` cannot be used with them"
    if data.condition_dropout:
        yield "condition_dropout: tokenized rows cannot be written without their condition; set it to 0"
    if data.part_weights is not None:
        yield "part_weights: tokenized rows hold their weights, of no parts; remove it"
    conditions = [spec.condition for spec in data.classes.values()]
    twice = sorted({condition for condition in conditions if conditions.count(condition) > 1})
    for number in numbers:
        if data.sources[number].class_name is not None or data.classes_from is not None:
            continue
        if not data.classes:
            yield f"sources.{number}: tokenized rows need `data.classes`: a row has the class of its condition"
        if twice:
            yield (
                f"sources.{number}: classes with the same condition ({', '.join(map(quoted, twice))}) cannot be "
                "distinguished in tokenized rows; name one as `class` of the source"
            )


def _source(data: DataSettings, source: SourceSettings, where: str) -> Iterator[str]:
    """A source names classes that exist, and no field that it needs is ignored."""
    known = ", ".join(data.classes) or "none"
    if not source.has_class and not source.row_format.carries_class and data.classes_from is None:
        yield f"{where}: give `class` or `class_field` (rows of format `{source.format}` name no class)"
    for name in (source.answer_classes or {}).values():
        if name not in data.classes:
            yield f"{where}.answer_classes: unknown class `{name}`; classes: {known}"
    if source.class_name is not None and source.class_name not in data.classes:
        yield f"{where}.class: unknown class `{source.class_name}`; classes: {known}"
    twice = [(name, other) for name in data.classes for other in class_spellings(name)[1:] if other in data.classes]
    if source.class_field is not None and twice:
        yield (
            f"{where}.class_field: a value of the rows may mean the class `{twice[0][0]}` or `{twice[0][1]}`; keep one "
            "of them"
        )
    for name in ignored_conversations(source, data.ignore_fields):
        yield f"ignore_fields: `{name}` holds the conversations of {where}; remove it"
    if source.class_field is not None and not data.classes:
        yield f"{where}.class_field: needs `data.classes`, which is empty"
