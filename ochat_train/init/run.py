"""`ochat init`: look at the files, decide, ask for what is missing, write the recipe."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from data_pipeline.errors import UserError
from data_pipeline.formats.table import TEXT_FORMATS
from data_pipeline.look.raw import SAMPLED_ROWS, SourceLook, look_at
from data_pipeline.prompt.templates import TEMPLATES
from data_pipeline.settings import ClassSettings
from ochat_train.init.base import Base, find_base
from ochat_train.init.classes import (
    ClassedSource,
    class_names,
    class_settings,
    classify,
    named_classes,
    pairs,
    read_classes,
)
from ochat_train.init.draft import Draft, lost_values, make_draft, measure
from ochat_train.init.recipe_text import recipe_text
from ochat_train.init.sizes import Decision
from ochat_train.init.text import draft_text, looks_text
from ochat_train.recipe.load import load_recipe
from ochat_train.recipe.sections import NAME_PATTERN
from ochat_train.system import durable

Ask = Callable[[str], str]
T = TypeVar("T")
_FIELD_PREFIX = "field:"


@dataclass(frozen=True, kw_only=True)
class Options:
    """The flags; None or empty for what was not said."""

    files: Sequence[str]
    base: str | None
    out: Path | None
    name: str | None
    template: str | None
    classes: Sequence[str]
    class_of: Sequence[str]
    class_field: Sequence[str]
    format: Sequence[str]
    max_length: int | None
    epochs: int | None
    gpus: int | None
    bad_rows: str | None
    sample_rows: int | None
    overwrite: bool


def init(options: Options, *, ask: Ask | None, say: Callable[[str], None]) -> Path:
    """Write a recipe and return its path. ask: how a person is asked, None where there is nobody; say: prints a text.

    Raises UserError for files that cannot be used, and for what is neither said nor can be asked; nothing is written
    then.
    """
    _check_flags(options)
    base = find_base(options.base) if options.base else None
    looks = _look_at_all(options)
    if base is None and ask is not None:
        base = _answer(ask, "Base model, a Hub id or a folder", None, find_base)
    template = _template(options, base)
    lengths = measure(looks, base, template.value)
    say(looks_text(looks, lengths, base))
    sources = _classify(options, looks, ask)
    classes = read_classes(options.classes, known=class_names(sources))
    missing = [name for name in class_names(sources) if name not in classes]
    if ask is None:
        _require(options, missing)
    else:
        classes |= _ask_classes(ask, missing, num_classes=len(class_names(sources)))
    assert base is not None, "asked for or required"
    read_path = partial(_writable_path, overwrite=options.overwrite)
    out = options.out or _answer(ask, "Recipe to write", f"recipes/{options.name or 'mine'}.yaml", read_path)
    name = options.name or re.sub(r"[^A-Za-z0-9._-]", "-", out.stem).lstrip("._-")[:64] or "mine"
    draft = make_draft(
        name=name,
        base=base,
        template=template,
        sources=sources,
        lengths=lengths,
        classes={name: classes[name] for name in class_names(sources)},
        gpus=options.gpus or _answer(ask, "GPUs of a run, which decide how large a step is", "1", _count),
        bad_rows=_bad_rows(options, looks, ask),
        max_length=options.max_length,
        epochs=options.epochs,
    )
    say("\n" + draft_text(draft))
    _write(draft, out)
    return out


def _check_flags(options: Options) -> None:
    """Raise UserError for flags that are wrong whatever the files hold."""
    if options.out is not None:
        _writable_path(str(options.out), overwrite=options.overwrite)
    if options.name is not None and not NAME_PATTERN.fullmatch(options.name):
        raise UserError(
            f"--name {options.name}", "use 1 to 64 letters, digits, `.`, `_` or `-`, beginning with a letter or digit"
        )
    if options.template is not None and options.template not in TEMPLATES:
        raise UserError(f"--template {options.template}", "unknown template", f"templates: {', '.join(TEMPLATES)}")
    twice = next((path for path in options.files if options.files.count(path) > 1), None)
    if twice is not None:
        raise UserError(twice, "is named twice")


def _writable_path(text: str, *, overwrite: bool) -> Path:
    out = Path(text)
    if out.is_dir():
        raise UserError(f"--out {out}", "is a folder", f"name a file, for example {out / 'mine.yaml'}")
    if out.suffix not in (".yaml", ".yml"):
        raise UserError(f"--out {out}", "a recipe's name ends in .yaml, for example recipes/mine.yaml")
    if out.exists() and not overwrite:
        raise UserError(f"--out {out}", "is there already", "choose another name, or give --overwrite")
    return out


def _look_at_all(options: Options) -> list[SourceLook]:
    """Look at every file; the problems of all files come as one UserError."""
    formats = pairs(options.format, flag="--format", paths=options.files)
    for path, name in formats.items():
        if name not in TEXT_FORMATS:
            raise UserError(f"--format {path}={name}", "unknown format", f"formats: {', '.join(TEXT_FORMATS)}")
    looks, problems = [], []
    for path in options.files:
        try:
            looks.append(look_at(path, format=formats.get(path), most_rows=options.sample_rows or SAMPLED_ROWS))
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError("\n".join(problems))
    return looks


def _template(options: Options, base: Base | None) -> Decision[str]:
    if options.template is not None:
        return Decision(value=options.template, reason="as --template says")
    if base is None:
        return Decision(value=next(iter(TEMPLATES)), reason="")  # only for a message about what is missing
    tokens = "" if base.vocab_size is None else f", {base.vocab_size:,} tokens"
    how = "by its name" if base.model_type is None else f"model_type {base.model_type}{tokens}"
    if base.family == "other":
        return Decision(value=base.template, reason=f"OpenChat has no format for this base ({how})")
    return Decision(value=base.template, reason=f"OpenChat's for {base.family} ({how})")


def _classify(options: Options, looks: Sequence[SourceLook], ask: Ask | None) -> list[ClassedSource]:
    class_of = pairs(options.class_of, flag="--class-of", paths=options.files)
    class_field = pairs(options.class_field, flag="--class-field", paths=options.files)
    named = named_classes(options.classes)
    sources = classify(looks, class_of=class_of, class_field=class_field, named=named)
    if ask is None:
        return sources
    for source in sources:
        path = source.look.path
        if path in class_of or path in class_field or source.class_name in named or not source.look.class_fields():
            continue  # decided by a flag, or there is nothing to choose from
        fields = ", ".join(f"{_FIELD_PREFIX}{name}" for name in source.look.class_fields())
        chosen = _answer(
            ask,
            f"Class of {path}: a name for all rows, or {fields}",
            _class_answer(source),
            partial(_read_class, source),
        )
        sources[sources.index(source)] = chosen
    return sources


def _class_answer(source: ClassedSource) -> str:
    """What a person would answer for the class that was decided."""
    if source.class_field is not None:
        return f"{_FIELD_PREFIX}{source.class_field}"
    return source.class_name or "each row's own"


def _read_class(source: ClassedSource, text: str) -> ClassedSource:
    path = source.look.path
    if text == _class_answer(source):
        return source
    is_field = text.startswith(_FIELD_PREFIX)
    class_field = {path: text.removeprefix(_FIELD_PREFIX)} if is_field else {}
    return classify([source.look], class_of={} if is_field else {path: text}, class_field=class_field, named=())[0]


def _require(options: Options, missing_classes: Sequence[str]) -> None:
    missing = [] if options.base else ["--base HUB_ID_OR_FOLDER"]
    missing += [] if options.out else ["--out RECIPE"]
    missing += [f"--class {_quoted(f'{name}=CONDITION:REWARD')}" for name in missing_classes]
    if missing:
        lines = ["there is no terminal to ask on; please add", *(f"  {flag}" for flag in missing)]
        if missing_classes:
            lines.append(
                "CONDITION joins the role prefixes (may be empty); REWARD: 1 lower counts a tenth. See "
                "docs/init-and-check.md"
            )
        raise UserError("\n".join(lines))


def _quoted(text: str) -> str:
    return text if re.fullmatch(r"[\w.:/=-]+", text) else f'"{text}"'


def _ask_classes(ask: Ask, names: Sequence[str], *, num_classes: int) -> dict[str, ClassSettings]:
    """Condition and reward of each class. One class alone needs no condition to be told from others."""
    classes = {}
    for name in names:
        default = "-" if num_classes == 1 else name
        question = f"Condition of class {name}, text that joins every prompt of it (- for none)"
        condition = _answer(ask, question, default, lambda text: "" if text == "-" else text)
        read = partial(class_settings, condition, where=f"class {name}")
        worth = "1.0" if num_classes == 1 else None  # which class is the better one, only a person knows
        classes[name] = _answer(ask, f"Reward of class {name}, for example 1.0; 1 lower counts a tenth", worth, read)
    return classes


def _bad_rows(options: Options, looks: Sequence[SourceLook], ask: Ask | None) -> Decision[str]:
    if options.bad_rows is not None:
        return Decision(value=options.bad_rows, reason="as --bad-rows says")
    num_bad, num_rows = sum(look.num_bad for look in looks), sum(look.num_sampled for look in looks)
    if not num_bad:
        return Decision(value="error", reason="every row looked at can be read")
    counts = f"{num_bad:,} of {num_rows:,} rows looked at cannot be read"
    question = f"{counts}: stop at such rows (error), or leave them out (drop)"
    answer = _answer(ask, question, "error", _error_or_drop)
    remedy = "; repair them, or leave them out with `drop`" if answer == "error" else ""
    return Decision(value=answer, reason=f"{counts}{remedy}")


def _error_or_drop(text: str) -> str:
    if text not in ("error", "drop"):
        raise UserError(text, "answer error or drop")
    return text


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise UserError(text, "expected a whole number above 0")
    return int(text)


def _answer(ask: Ask | None, question: str, default: str | None, read: Callable[[str], T]) -> T:
    """Ask until the answer can be read; Enter takes the default. Where nobody can be asked, the default counts."""
    if ask is None:
        assert default is not None, "_require() makes sure that it was said"
        return read(default)
    note = ""
    while True:
        text = ask(f"{note}{question}{'' if default is None else f' [{default}]'}: ").strip() or default
        try:
            if text is None:
                raise UserError("please answer")
            return read(text)
        except UserError as error:
            note = f"  {error}\n"


def _write(draft: Draft, out: Path) -> None:
    """Prove that the recipe loads, and write it. Raises UserError, with nothing written."""
    text = recipe_text(draft, out=str(out))
    with tempfile.TemporaryDirectory() as folder:
        trial = Path(folder, out.name)
        trial.write_text(text, encoding="utf-8")
        try:
            recipe = load_recipe(trial)
        except UserError as error:
            raise UserError(
                f"these choices make no valid recipe:\n{str(error).replace(str(trial), str(out))}"
            ) from None
    if lost := lost_values(draft, recipe):
        raise UserError(
            f"{', '.join(lost)}", "cannot be written as YAML that reads back as the same", "choose another text"
        )
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        durable.replace_text(out, text)
    except OSError as error:
        raise UserError(f"--out {out}", f"cannot be written: {error.strerror}") from None
