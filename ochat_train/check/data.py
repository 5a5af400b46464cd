"""Sources, classes and the prepared dataset."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from data_pipeline.conversation import TaggedConversation
from data_pipeline.errors import RowError, UserError
from data_pipeline.formats.detect import Layout
from data_pipeline.look.raw import own_factors
from data_pipeline.look.samples import LEGEND, spread, training_text
from data_pipeline.prepared.dataset import DamagedDataError
from data_pipeline.prepared.integrity import verify
from data_pipeline.prompt.prompt_format import Renderer, renderer_of
from data_pipeline.read.layout import first_rows, unused_names
from data_pipeline.read.sources import check_sources as file_notes
from data_pipeline.settings.data import class_specs
from data_pipeline.text_rules import quoted
from ochat_train.check.findings import Finding, Level, from_error, ok, problem, warning
from ochat_train.check.recipe_facts import RecipeFacts, SourceSample
from ochat_train.evaluation.questions import load_questions
from ochat_train.recipe.recipe import Recipe
from ochat_train.suites.benchmarks import load_benchmarks
from ochat_train.system.sizes import GIB

_CLASSES = "data.classes"
_EXAMPLES = 2
_RENDERED = 200  # conversations of a source
_FEW_LONGER = 0.01  # of a source; `ochat init` proposes a limit that 99 % fit into


def check_sources(facts: RecipeFacts) -> Iterator[Finding]:
    """Whether each source exists and its rows can be read. Once the dataset is prepared, they are no longer needed."""
    for _, sample in facts.samples():
        if isinstance(sample, SourceSample):
            yield _source_finding(facts, sample)
        elif facts.usable_data is not None:
            for found in from_error("sources", sample, level="warning"):
                yield replace(found, problem=f"{found.problem}; not needed, as the dataset is prepared already")
        else:
            yield from from_error("sources", sample)
    with contextlib.suppress(UserError):  # what is wrong with a source is said above
        for note in file_notes(facts.recipe.data.sources):
            yield warning("sources", note.place, note.problem, note.remedy)
    yield from _check_ignored(facts)
    if (questions := facts.recipe.validation.questions) is not None:
        yield from _check_questions(Path(questions))
    yield from _check_benchmarks(facts.recipe)


def _check_ignored(facts: RecipeFacts) -> Iterator[Finding]:
    """Names of `data.ignore_fields` that no row looked at has."""
    unused = list(facts.recipe.data.ignore_fields)
    for number, source in enumerate(facts.recipe.data.sources):
        if unused and not source.is_on_hub and not source.is_tokenized:
            with contextlib.suppress(UserError):  # `_source_finding` reports it
                unused = list(unused_names(unused, first_rows(source, where=f"data.sources.{number}")))
    if unused:
        names = ", ".join(f"`{name}`" for name in unused)
        yield warning("sources", "data.ignore_fields", f"none of the first rows has {names}", "is it spelled as there?")


def _check_questions(path: Path) -> Iterator[Finding]:
    try:
        yield ok("sources", path, f"{len(load_questions(path)):,} questions")
    except UserError as error:
        yield from from_error("sources", error, level="warning", remedy="only `ochat ablate` needs it")


def _check_benchmarks(recipe: Recipe) -> Iterator[Finding]:
    """Whether the questions of `validation.benchmarks` can be read and asked. A run needs them all."""
    conditions = [spec.condition for spec in class_specs(recipe.data).values()]
    try:
        for found in load_benchmarks(recipe.validation, conditions=conditions):
            asked = min(found.limit or len(found.questions), len(found.questions))
            text = f"{found.suite.name}: {asked:,} of {len(found.questions):,} questions"
            yield ok("sources", found.place, f"{text}, under {', '.join(map(quoted, found.conditions))}")
    except UserError as error:
        yield from from_error("sources", error)


def _source_finding(facts: RecipeFacts, sample: SourceSample) -> Finding:
    ledger, path = sample.ledger, sample.source.path
    seen = f"{ledger.num_read:,} of {sample.num_rows:,} rows looked at"
    if not sample.num_rows:
        return problem("sources", path, "holds no rows", "fill it, or remove the source")
    if sample.unread:
        text = "\n".join([f"{seen}, fields that would not be trained on", *sample.unread])
        return problem("sources", path, text, "name them in `data.ignore_fields`, or read them with `fields`")
    if not ledger.bad:
        layout = Layout(format=sample.source.format, fields=sample.source.row_fields)
        return ok("sources", path, f"{seen}, all can be read ({str(layout).removeprefix('format: ')})")
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in ledger.bad.most_common())
    examples = [text for reason in ledger.bad for text in ledger.examples[reason][:_EXAMPLES]]
    text = "\n".join([f"{seen}, {sum(ledger.bad.values()):,} cannot be read ({reasons})", *examples])
    if facts.recipe.data.bad_rows == "drop":
        return warning("sources", path, text, "data.bad_rows: drop leaves them out and counts them")
    return problem("sources", path, text, "repair them, or set `data.bad_rows: drop` to leave them out and count them")


def check_rows(facts: RecipeFacts) -> Iterator[Finding]:
    """Three conversations of each source as they will be trained on, and whether the template can show the others."""
    render = renderer_of(facts.template, facts.tokenizer)
    for _, sample in facts.samples():
        if not isinstance(sample, SourceSample) or not sample.kept or sample.source.is_tokenized:
            continue
        path = sample.source.path
        yield ok("rows", path, "\n".join([LEGEND, *_sample_lines(sample, render)]))
        unshown = [error for item in spread(sample.kept, _RENDERED) if (error := _unshown(item, render)) is not None]
        if unshown:
            text = f"{len(unshown):,} of {min(len(sample.kept), _RENDERED):,} conversations looked at: {unshown[0]}"
            level = warning if facts.recipe.data.bad_rows == "drop" else problem
            yield level("rows", path, text, "choose a `model.template` that has a place for it, or remove such rows")


def _sample_lines(sample: SourceSample, render: Renderer) -> Iterator[str]:
    for item in spread(sample.kept):
        yield f"{item.conversation.place}:"
        # weights of classes may depend on all rewards, which nobody has read yet
        yield training_text(replace(item, message_weights=own_factors(item.conversation)), render)


def _unshown(item: TaggedConversation, render: Renderer) -> str | None:
    """Why the template cannot show a conversation, None where it can."""
    try:
        render(item)
    except RowError as error:
        return f"{item.conversation.place}: {error}"
    return None


def check_lengths(facts: RecipeFacts) -> Iterator[Finding]:
    """How many conversations are longer than the recipe allows, of the rows looked at."""
    for _, sample in facts.samples():
        if isinstance(sample, SourceSample) and len(sample.kept) and len(lengths := facts.token_lengths(sample)):
            yield _length_finding(
                lengths, facts.recipe, path=sample.source.path, is_all=len(lengths) == sample.num_rows
            )


def _length_finding(lengths: np.ndarray, recipe: Recipe, *, path: str, is_all: bool) -> Finding:
    """is_all: whether every conversation of the source was tokenized."""
    limit, overlong = recipe.model.max_length_tokens, recipe.data.overlong
    num_longer = int(np.count_nonzero(lengths > limit))
    which = f"all {len(lengths):,} conversations" if is_all else f"{len(lengths):,} conversations, taken at random,"
    seen = f"the longest of {which} has {int(lengths.max()):,} tokens"
    if not num_longer:
        return ok("lengths", path, f"{seen}, all fit into model.max_length_tokens {limit:,}")
    text = f"{seen}, {num_longer:,} ({num_longer / len(lengths):.1%}) are longer than model.max_length_tokens {limit:,}"
    remedy = "raise it as far as the base goes (train.pack_length_tokens must not be less)"
    if overlong == "error":
        text = f"{text}; data.overlong: error does not allow that"
        return problem("lengths", path, text, f"{remedy}, or set data.overlong")
    done = "keep their beginning" if overlong == "truncate" else "are left out"
    if num_longer <= _FEW_LONGER * len(lengths):
        return ok("lengths", path, f"{text}; they {done}")
    return warning(
        "lengths", path, f"{text}; they {done} (data.overlong: {overlong})", f"{remedy}, if that is too much"
    )


def check_classes(facts: RecipeFacts) -> Iterator[Finding]:
    """Which classes have conversations, by the prepared dataset or by the rows looked at."""
    data = facts.recipe.data
    specs = class_specs(data)
    yield from _shared_conditions({name: spec.condition for name, spec in specs.items()})
    if data.classes_from is not None:
        borders = "`ochat prepare` finds their borders"
        yield ok("classes", _CLASSES, f"{len(specs)} quantiles of `{data.classes_from.field}`; {borders}")
        return
    counts, where = _class_counts(facts)
    if counts:
        found = ", ".join(f"{name} {count:,}" for name, count in counts.most_common() if count)
        yield ok("classes", _CLASSES, f"{found} in {where}")
    named = {name for source in data.sources for name in (source.class_name, *(source.answer_classes or {}).values())}
    has_fields = any(source.class_field is not None for source in data.sources)
    for name in specs:
        place = f"{_CLASSES}.{name}"
        if not has_fields and name not in named:
            yield warning("classes", place, "no source has this class", "remove it, or name it in a source")
        elif counts and not counts[name]:
            yield warning("classes", place, f"no conversation in {where}", "is its name spelled as in the data?")
    if len(counts) == 1 and not any(source.reward_field for source in data.sources):
        text = "only one class: there is no difference to learn from"
        yield warning("classes", _CLASSES, text, "fine for plain fine-tuning")


def _shared_conditions(conditions: Mapping[str, str]) -> Iterator[Finding]:
    """conditions: by class."""
    names_of: dict[str, list[str]] = {}
    for name, condition in conditions.items():
        names_of.setdefault(condition, []).append(name)
    for condition, names in names_of.items():
        if len(names) > 1:
            text = f"{' and '.join(names)} share the condition {quoted(condition)}: a prompt cannot ask for one of them"
            yield warning("classes", _CLASSES, text, "give each its own, unless they should only differ in weight")


def _class_counts(facts: RecipeFacts) -> tuple[Counter[str], str]:
    """Conversations by class, and where they were counted."""
    manifest = facts.usable_data
    if manifest is not None:
        return Counter({row.name: row.conversations for row in manifest.classes}), "the prepared dataset"
    counts: Counter[str] = Counter()
    for _, sample in facts.samples():
        counts.update(sample.classes if isinstance(sample, SourceSample) else {})
    return counts, "the rows looked at"


def check_prepared_data(facts: RecipeFacts) -> Iterator[Finding]:
    """Whether `ochat train` could start at once. Reads all of the prepared data, also what a start would not read."""
    folder, remedy = facts.recipe.data.prepared_dir, "run `ochat prepare` with this recipe"
    _ = facts.tokenizer  # without it, nothing can be compared
    try:
        manifest = facts.prepared
    except UserError as error:
        level: Level = "problem" if isinstance(error, DamagedDataError) else "warning"
        yield from from_error("prepared", error, level=level, remedy=remedy)
        return
    if manifest is None:
        yield warning("prepared", folder, "not prepared yet", remedy)
        return
    verified = verify(Path(folder), manifest, read_all=True)
    splits = ", ".join(f"{name} {counts.conversations:,}" for name, counts in manifest.splits.items())
    read = f"{verified.num_files} files of {verified.num_bytes / GIB:.2f} GiB read in {verified.seconds:.1f} s"
    if verified.warning:
        yield warning("prepared", folder, f"made from this recipe ({splits}), but not verified", verified.warning)
    else:
        yield ok("prepared", folder, f"made from this recipe ({splits}); {read}, all are as they were written")
