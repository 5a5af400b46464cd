"""Which class the rows of each file have, and what the user has to add about the classes. Pure functions."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from data_pipeline.errors import UserError
from data_pipeline.look.raw import SourceLook
from data_pipeline.settings.classes import ClassSettings
from ochat_train.recipe.problems import rule_broken

# Last part of a field's name, the most telling first: fields of other names with few values (`language`) name no
# classes.
_CLASS_FIELD_NAMES = ("class", "quality", "source", "condition", "generator", "model", "label")


@dataclass(frozen=True, kw_only=True)
class ClassedSource:
    """A file and its class: `class_name` for all rows, or `class_field`, or neither if OpenChat's rows carry it, or a
    row has a better and a worse answer, which are the classes.

    names: the classes of its sampled rows. reason: why this was chosen.
    """

    look: SourceLook
    class_name: str | None = None
    class_field: str | None = None
    names: Sequence[str]
    reason: str


def default_names(paths: Sequence[str]) -> dict[str, str]:
    """A class name for every path, no two the same.

    The last part without suffix. If two are the same: the whole path, then with its suffix, then with a number.
    """
    names = {path: _name_parts(path, keep_suffix=False)[-1] for path in paths}
    for keep_suffix in (False, True):
        count = Counter(names.values())
        longer = {path: "-".join(_name_parts(path, keep_suffix=keep_suffix)) for path in paths}
        names = {path: longer[path] if count[name] > 1 else name for path, name in names.items()}
    count = Counter(names.values())
    taken = {name for name in names.values() if count[name] == 1}
    for path, name in names.items():
        if count[name] > 1:
            names[path] = next(text for text in _numbered(name) if text not in taken)
            taken.add(names[path])
    return names


def _name_parts(path: str, *, keep_suffix: bool) -> list[str]:
    """The parts of a path that can name a class: no root, no `..`, no wildcards; at least one."""
    *folders, last = Path(path).parts or ("",)
    last = last if keep_suffix else last.partition(".")[0]
    parts = (part.replace("*", "") for part in (*folders, last) if part.strip("./*"))
    return list(parts) or ["data"]


def _numbered(name: str) -> Iterator[str]:
    yield name
    yield from (f"{name}-{number}" for number in itertools.count(2))


def classify(
    looks: Sequence[SourceLook], *, class_of: Mapping[str, str], class_field: Mapping[str, str], named: Sequence[str]
) -> list[ClassedSource]:
    """Decide the class of each file. class_of, class_field: by path, what flags say. named: classes that flags
    describe.

    Raises UserError for a field that cannot name classes.
    """
    defaults = default_names([look.path for look in looks])
    return [
        _classify(
            look,
            default=defaults[look.path],
            wanted=class_of.get(look.path),
            field=class_field.get(look.path),
            named=named,
        )
        for look in looks
    ]


def _classify(
    look: SourceLook, *, default: str, wanted: str | None, field: str | None, named: Sequence[str]
) -> ClassedSource:
    if look.has_pairs:
        if wanted is not None or field is not None:
            raise UserError(look.path, "a row has two answers, which have a class each", "leave out its class")
        names = list(dict.fromkeys(conversation.class_value or "" for conversation in look.conversations))
        return ClassedSource(look=look, names=names, reason="each row has a better and a worse answer")
    if wanted is not None and field is not None:
        raise UserError(look.path, "has both --class-of and --class-field", "give one of them, not both")
    if wanted is not None:
        return ClassedSource(look=look, class_name=wanted, names=[wanted], reason="as --class-of says")
    if field is not None:
        return ClassedSource(look=look, class_field=field, names=_names(look, field), reason="as --class-field says")
    if default in named:
        return ClassedSource(look=look, class_name=default, names=[default], reason="named like the file")
    if look.carries_classes:
        names = list(look.fields["condition"].values or ()) if "condition" in look.fields else []
        return ClassedSource(look=look, names=names, reason="every row carries its condition and weights")
    fields = {field.rpartition(".")[2]: field for field in reversed(look.class_fields())}
    best = next((fields[name] for name in _CLASS_FIELD_NAMES if name in fields), None)
    if best is not None:
        names = _names(look, best)
        return ClassedSource(look=look, class_field=best, names=names, reason=f"field `{best}` has {len(names)} values")
    return ClassedSource(look=look, class_name=default, names=[default], reason="one class for the file, named like it")


def _names(look: SourceLook, field: str) -> list[str]:
    place, num_rows = f"--class-field {look.path}={field}", look.num_readable_rows
    seen = look.fields.get(field)
    remedy = f"fields: {', '.join(look.class_fields()) or 'none'}"
    if seen is None:
        raise UserError(place, "no row has such a field with few values", remedy)
    if seen.values is None or not seen.is_name:
        raise UserError(place, "its values are not names of a few classes", remedy)
    if seen.num_rows < num_rows:
        raise UserError(place, f"{num_rows - seen.num_rows:,} of the {num_rows:,} sampled rows do not have it", remedy)
    return [name for name, _ in seen.values.most_common()]


def class_names(sources: Sequence[ClassedSource]) -> list[str]:
    """Every class that needs a condition and a reward, in the order in which the files have them."""
    needing = (s for s in sources if s.class_name is not None or s.class_field is not None or s.look.has_pairs)
    return list(dict.fromkeys(name for source in needing for name in source.names))


def named_classes(texts: Sequence[str]) -> list[str]:
    """The names in `--class` flags, as far as the text alone tells: a name may hold `=`."""
    return [text.partition("=")[0] for text in texts]


def read_classes(texts: Sequence[str], *, known: Sequence[str]) -> dict[str, ClassSettings]:
    """`NAME=CONDITION:REWARD` flags. Names may hold `=` and conditions `:`. Raises UserError for an unknown class."""
    classes = {}
    for text in texts:
        fitting = [name for name in known if text.startswith(f"{name}=")]
        if not fitting:
            rule = f"expected NAME=CONDITION:REWARD with one of the classes: {', '.join(known)}"
            own = "every row carries its own condition; leave --class out, or name a class with --class-of FILE=NAME"
            raise UserError(f"--class {text}", rule if known else own)
        name = max(fitting, key=len)
        condition, separator, reward = text[len(name) + 1 :].rpartition(":")
        if not separator:
            remedy = f"expected {name}=CONDITION:REWARD, for example {name}=GPT4:1.0"
            raise UserError(f"--class {text}", "the reward is missing", remedy)
        classes[name] = class_settings(condition, reward, where=f"--class {text}")
    return classes


def class_settings(condition: str, reward: str, *, where: str) -> ClassSettings:
    """A class from texts. Raises UserError for a reward that is not a number and for an unusable condition."""
    try:
        value = float(reward)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(where, f"{reward!r} is not a number")
    try:
        return ClassSettings(condition=condition, reward=value)
    except ValidationError as error:
        raise UserError(where, rule_broken(error.errors()[0])) from None
