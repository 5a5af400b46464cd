"""`ochat init`: look at the files, decide, ask for what is missing, write the recipe."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from data_pipeline.errors import UserError, UserErrors
from data_pipeline.files import cannot_write
from data_pipeline.look.raw import SAMPLED_ROWS, SourceLook, look_at
from data_pipeline.look.samples import LEGEND
from ochat_train.init.adapter import choose_adapter, gpu_memory_gib
from ochat_train.init.ask import Ask, answer, ask_class, ask_conditions, count, error_or_drop
from ochat_train.init.base import find_base
from ochat_train.init.classes import ClassedSource, class_names, classify, named_classes, read_classes
from ochat_train.init.draft import (
    Draft,
    choose_bad_rows,
    choose_template,
    lost_values,
    make_draft,
    measure,
    recipe_name,
    with_adapter,
)
from ochat_train.init.options import Options, check_options, check_out, file_formats, values_by_file
from ochat_train.init.recipe_text import recipe_text
from ochat_train.init.sizes import Decision
from ochat_train.init.text import draft_text, looks_text, missing_flags, rows_text, unreadable_text
from ochat_train.recipe.load import load_recipe
from ochat_train.recipe.recipe import Recipe
from ochat_train.system import durable


def init(options: Options, *, ask: Ask | None, say: Callable[[str], None]) -> Path:
    """Write a recipe and return its path. ask: how to ask a person, None if there is nobody; say: prints a text.

    Raises UserError for files that cannot be used, and for what is neither given nor can be asked; nothing is written
    then.
    """
    draft, out = draft_recipe(options, ask=ask, say=say)
    say("\n" + draft_text(draft))
    write_recipe(recipe_text(draft, out=str(out)), draft, out)
    return out


def draft_recipe(options: Options, *, ask: Ask | None, say: Callable[[str], None]) -> tuple[Draft, Path]:
    """Everything that the recipe says, and the file to write it to. Raises UserError as `init` does."""
    check_options(options)
    base = find_base(options.base) if options.base else None
    looks = _look_at_all(options)
    if base is None and ask is not None:
        base = answer(ask, "Base model, a Hub id or a folder", None, find_base)
    template = choose_template(options.template, base)
    lengths = measure(looks, base, template.value)
    examples = (rows_text(look, template.value) for look in looks)
    say("\n".join([looks_text(looks, lengths, base), f"\nsamples: {LEGEND}", *examples]))
    sources = _classify(options, looks, ask)
    names = class_names(sources)
    classes = read_classes(options.classes, known=names)
    unknown = [name for name in names if name not in classes]
    if ask is not None:
        classes |= ask_conditions(ask, unknown, is_only_class=len(names) == 1)
    elif base is None or options.out is None or unknown:
        raise missing_flags(base=base is None, out=options.out is None, classes=unknown)
    assert base is not None, "asked for or required"
    default_out = f"recipes/{options.name or 'mine'}.yaml"
    out = options.out or answer(
        ask, "Recipe to write", default_out, lambda text: check_out(Path(text), overwrite=options.overwrite)
    )
    gpus = options.gpus or answer(ask, "GPUs of a run, which decide how large a step is", "1", count)
    draft = make_draft(
        name=options.name or recipe_name(out),
        base=base,
        template=template,
        sources=sources,
        lengths=lengths,
        classes={name: classes[name] for name in names},
        gpus=gpus,
        bad_rows=_bad_rows(options, looks, ask),
        max_length=options.max_length,
        epochs=options.epochs,
    )
    recipe = read_back(recipe_text(draft, out=str(out)), out)
    adapter = choose_adapter(options.adapter, recipe, base, gpus=gpus, memory_gib=gpu_memory_gib(), ask=ask)
    return with_adapter(draft, adapter), out


def _look_at_all(options: Options) -> list[SourceLook]:
    """Look at every file. Raises one UserError with the problems of all files."""
    formats = file_formats(options)
    looks, errors = [], []
    for path in options.files:
        try:
            looks.append(look_at(path, format=formats.get(path), most_rows=options.sample_rows or SAMPLED_ROWS))
        except UserError as error:
            errors.append(error)
    if len(errors) > 1:
        found = [problem for error in errors for problem in error.problems]
        raise UserErrors("data files", f"{len(errors)} problems", found)
    if errors:
        raise errors[0]
    return looks


def _classify(options: Options, looks: Sequence[SourceLook], ask: Ask | None) -> list[ClassedSource]:
    class_of = values_by_file(options.class_of, flag="--class-of", paths=options.files)
    class_field = values_by_file(options.class_field, flag="--class-field", paths=options.files)
    named = named_classes(options.classes)
    sources = classify(looks, class_of=class_of, class_field=class_field, named=named)
    if ask is None:
        return sources

    def is_open(source: ClassedSource) -> bool:
        """Whether no flag has decided it and there is something to choose from."""
        path = source.look.path
        is_given = path in class_of or path in class_field or source.class_name in named
        return not is_given and not source.look.has_pairs and bool(source.look.class_fields())

    return [ask_class(ask, source) if is_open(source) else source for source in sources]


def _bad_rows(options: Options, looks: Sequence[SourceLook], ask: Ask | None) -> Decision[str]:
    unreadable = unreadable_text(looks)
    chosen = None
    if options.bad_rows is None and unreadable is not None:
        question = f"{unreadable}: stop at such rows (error), or leave them out (drop)"
        chosen = answer(ask, question, "error", error_or_drop)
    return choose_bad_rows(options.bad_rows, chosen, unreadable=unreadable)


def read_back(text: str, out: Path) -> Recipe:
    """The recipe of a text that is for the file `out`. Raises UserError where it is not valid."""
    with tempfile.TemporaryDirectory() as folder:
        trial = Path(folder, out.name)
        trial.write_text(text, encoding="utf-8")
        try:
            return load_recipe(trial)
        except UserError as error:
            found = [replace(problem, place=problem.place.replace(str(trial), str(out))) for problem in error.problems]
            raise UserErrors(out, "these choices make no valid recipe", found) from None


def write_recipe(text: str, draft: Draft, out: Path) -> None:
    """Prove that a recipe loads and says what the draft says, and write it. Raises UserError, with nothing written."""
    recipe = read_back(text, out)
    if lost := lost_values(draft, recipe):
        raise UserError(", ".join(lost), "cannot be written as YAML that reads back as the same", "choose another text")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        durable.replace_text(out, text)
    except OSError as error:
        raise cannot_write(out, error, option="--out") from None
