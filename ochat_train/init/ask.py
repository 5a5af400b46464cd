"""Asking a person for what `ochat init` was not told."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TypeVar

from data_pipeline.errors import UserError
from data_pipeline.settings.classes import ClassSettings
from ochat_train.init.classes import ClassedSource, class_settings, classify

Ask = Callable[[str], str]  # shows a question and returns the answer
T = TypeVar("T")
_FIELD_PREFIX = "field:"


def answer(ask: Ask | None, question: str, default: str | None, read: Callable[[str], T]) -> T:
    """Ask until the answer can be read; Enter takes the default. ask: None takes the default unasked."""
    if ask is None:
        assert default is not None, "what has no default is required where nobody can be asked"
        return read(default)
    note = ""
    while True:
        text = ask(f"{note}{question}{'' if default is None else f' [{default}]'}: ").strip() or default
        if text is None:
            note = "  please answer\n"
            continue
        try:
            return read(text)
        except UserError as error:
            note = f"  {error}\n"


def ask_class(ask: Ask, source: ClassedSource) -> ClassedSource:
    """The class of a file. source: with the class that is the default."""
    path = source.look.path
    fields = ", ".join(f"{_FIELD_PREFIX}{name}" for name in source.look.class_fields())
    question = f"Class of {path}: a name for all rows, or {fields}"
    return answer(ask, question, _class_answer(source), partial(_read_class, source))


def _class_answer(source: ClassedSource) -> str:
    """What a person would type for the class that is the default."""
    if source.class_field is not None:
        return f"{_FIELD_PREFIX}{source.class_field}"
    return source.class_name or "each row's own"


def _read_class(source: ClassedSource, text: str) -> ClassedSource:
    path = source.look.path
    if text == _class_answer(source):
        return source
    is_field = text.startswith(_FIELD_PREFIX)
    class_field = {path: text.removeprefix(_FIELD_PREFIX)} if is_field else {}
    [chosen] = classify([source.look], class_of={} if is_field else {path: text}, class_field=class_field, named=())
    return chosen


def ask_conditions(ask: Ask, names: Sequence[str], *, is_only_class: bool) -> Mapping[str, ClassSettings]:
    """Condition and reward of each class. An only class needs no condition to be told from others."""
    classes = {}
    for name in names:
        default = "-" if is_only_class else name
        question = f"Condition of class {name}, text in every prompt for it (- for none)"
        condition = answer(ask, question, default, lambda text: "" if text == "-" else text)
        read = partial(class_settings, condition, where=f"class {name}")
        reward = "1.0" if is_only_class else None  # only a person knows which class is the better one
        question = f"Reward of class {name}, for example 1.0; one that is 1 lower weighs a tenth"
        classes[name] = answer(ask, question, reward, read)
    return classes


def error_or_drop(text: str) -> str:
    """`data.bad_rows`. Raises UserError for another answer."""
    if text not in ("error", "drop"):
        raise UserError(text, "answer error or drop")
    return text


def count(text: str) -> int:
    """A whole number of at least 1. Raises UserError for another answer."""
    if not text.isdigit() or int(text) < 1:
        raise UserError(text, "expected a whole number above 0")
    return int(text)
