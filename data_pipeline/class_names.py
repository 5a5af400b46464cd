"""Names that users give to classes, in every place that cannot hold any text: files, names of runs, names of curves.

Two names never become one, and a name that needs no change keeps its form, whatever the others are called.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable

from data_pipeline.text_rules import text_problem

MOST_FILE_CHARACTERS = 40
_PLAIN_FILE = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{MOST_FILE_CHARACTERS - 1}}}")
_WHOLE = re.compile(r"-?\d+")
_STEM_CHARACTERS = 24
_HASH_CHARACTERS = 8
_CHANGED_IN_CURVES = re.compile(r"[^-\w.]")  # what TensorBoard writes as `_`


def class_name_problem(name: str) -> str | None:
    """Why a class cannot have this name, None where it can. Any text will do that files and trackers can hold."""
    return "is empty; give the class a name" if not name.strip() else text_problem(name)


def class_spellings(value: str) -> tuple[str, ...]:
    """How a class may be spelled in a recipe whose name in the rows is `value`: a truth value also as Python writes it,
    a whole number also with `.0`.
    """
    if value in ("true", "false"):
        return value, value.capitalize()
    return (value, f"{value}.0") if _WHOLE.fullmatch(value) else (value,)


def known_class(value: str, names: Collection[str]) -> str:
    """The class of the recipe that a value of a row means; the value itself where there is none."""
    return next((name for name in class_spellings(value) if name in names), value)


def file_names(names: Iterable[str], *, taken: Collection[str] = ()) -> dict[str, str]:
    """A name for files and runs for each of some names: ASCII letters, digits, `.`, `_` and `-`.

    Also on a disk that does not tell capital letters from small ones they stay apart. taken: names that none may get.
    """
    names = list(dict.fromkeys(names))
    used = Counter(name.casefold() for name in [*names, *taken])
    return {
        name: name if _PLAIN_FILE.fullmatch(name) and used[name.casefold()] == 1 else _stem(name) + _mark(name, used)
        for name in names
    }


def short_file_name(name: str, *, most_characters: int) -> str:
    """A name for files with at most so many characters; two that are cut stay apart."""
    if len(name) <= most_characters:
        return name
    return name[: most_characters - _HASH_CHARACTERS - 1] + _mark(name, Counter())


def curve_names(names: Iterable[str]) -> dict[str, str]:
    """A name for curves of trackers for each of some names.

    A slash would begin another group. TensorBoard writes every character but letters, digits, `.`, `_` and `-` as `_`.
    """
    names = list(dict.fromkeys(names))
    used = Counter(_CHANGED_IN_CURVES.sub("_", name) for name in names)
    curves = {}
    for name in names:
        shown = _CHANGED_IN_CURVES.sub("_", name)
        is_own = shown == name or (used[shown] == 1 and any(map(str.isalnum, shown)))
        curves[name] = name if is_own and "/" not in name else name.replace("/", "_") + _mark(name, used)
    return curves


def _stem(name: str) -> str:
    """What can be kept of a name: letters without accents, digits, and `-` for anything else."""
    letters = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9._]+", "-", letters).strip("-._")[:_STEM_CHARACTERS] or "class"


def _mark(name: str, used: Counter[str]) -> str:
    """`-` and the beginning of the name's hash, as long as it takes to be another name than all others."""
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()
    length = _HASH_CHARACTERS
    while any(other.endswith(digest[:length]) for other in used):
        length += 1
    return f"-{digest[:length]}"
