"""Sources, classes and the prepared dataset."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data_pipeline.errors import UserError
from data_pipeline.prepared.dataset import Manifest
from data_pipeline.settings import class_specs
from data_pipeline.text_rules import quoted
from ochat_train.check.facts import Facts, SourceSample
from ochat_train.check.findings import Finding, from_error, ok, problem, warning
from ochat_train.evaluation.questions import load_questions
from ochat_train.recipe.sections import Recipe

_EXAMPLES = 2
_FEW_LONGER = 0.01  # of a source; `ochat init` proposes a limit that 99 % fit into


def check_sources(facts: Facts) -> Iterator[Finding]:
    """Whether each source is there and its rows can be read. What is prepared already is not needed any more."""
    for source, sample in facts.samples():
        if isinstance(sample, SourceSample):
            yield _source_finding(facts, sample)
        elif _is_prepared(facts):
            yield warning("sources", f"{source.path}: cannot be read, but the prepared dataset is there", str(sample))
        else:
            yield from_error("sources", sample)
    if (questions := facts.recipe.validation.questions) is not None:
        yield _questions_finding(Path(questions))


def _questions_finding(path: Path) -> Finding:
    try:
        return ok("sources", f"{path}: {len(load_questions(path)):,} questions")
    except UserError as error:
        return warning("sources", str(error), "only `ochat ablate` needs it")


def _source_finding(facts: Facts, sample: SourceSample) -> Finding:
    ledger, path = sample.ledger, sample.source.path
    seen = f"{path}: {ledger.num_read:,} of {sample.num_rows:,} rows looked at"
    if not sample.num_rows:
        return problem("sources", f"{path}: holds no rows", "fill it, or remove the source")
    if not ledger.bad:
        return ok("sources", f"{seen}, all can be read ({sample.source.format})")
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in ledger.bad.most_common())
    examples = [text for reason in ledger.bad for text in ledger.examples[reason][:_EXAMPLES]]
    text = "\n".join([f"{seen}, {sum(ledger.bad.values()):,} cannot be read ({reasons})", *examples])
    if facts.recipe.data.bad_rows == "drop":
        return warning("sources", text, "data.bad_rows: drop leaves them out and counts them")
    return problem("sources", text, "repair them, or set `data.bad_rows: drop` to leave them out and count them")


def check_lengths(facts: Facts) -> Iterator[Finding]:
    """How many conversations are longer than the recipe allows, of the rows looked at."""
    for _, sample in facts.samples():
        if isinstance(sample, SourceSample) and len(sample.kept) and len(lengths := facts.token_lengths(sample)):
            yield _length_finding(lengths, facts.recipe, path=sample.source.path)


def _length_finding(lengths: np.ndarray, recipe: Recipe, *, path: str) -> Finding:
    limit, overlong = recipe.model.max_length_tokens, recipe.data.overlong
    num_longer = int(np.count_nonzero(lengths > limit))
    seen = f"{path}: the longest of {len(lengths):,} conversations looked at has {int(lengths.max()):,} tokens"
    if not num_longer:
        return ok("lengths", f"{seen}, all fit into model.max_length_tokens {limit:,}")
    text = f"{seen}, {num_longer:,} ({num_longer / len(lengths):.1%}) are longer than model.max_length_tokens {limit:,}"
    remedy = "raise it as far as the base goes (train.pack_length_tokens must not be less)"
    if overlong == "error":
        return problem(
            "lengths", f"{text}; data.overlong: error does not allow that", f"{remedy}, or set data.overlong"
        )
    done = "keep their beginning" if overlong == "truncate" else "are left out"
    if num_longer <= _FEW_LONGER * len(lengths):
        return ok("lengths", f"{text}; they {done}")
    return warning("lengths", f"{text}; they {done} (data.overlong: {overlong})", f"{remedy}, if that is too much")


def check_classes(facts: Facts) -> Iterator[Finding]:
    """Which classes have conversations, by the prepared dataset or by the rows looked at."""
    data = facts.recipe.data
    specs = class_specs(data)
    by_condition: dict[str, list[str]] = {}
    for name, spec in specs.items():
        by_condition.setdefault(spec.condition, []).append(name)
    for condition, names in by_condition.items():
        if len(names) > 1:
            text = f"{' and '.join(names)} share the condition {quoted(condition)}: a prompt cannot ask for one of them"
            yield warning("classes", text, "give each its own, unless they should only differ in weight")
    if data.classes_from is not None:
        yield ok(
            "classes", f"{len(specs)} quantiles of `{data.classes_from.field}`; `ochat prepare` finds their borders"
        )
        return
    manifest = _prepared(facts)
    counts: Counter[str] = Counter()
    if manifest is not None:
        counts.update({row.name: row.conversations for row in manifest.classes})
    else:
        for _, sample in facts.samples():
            counts.update(sample.classes if isinstance(sample, SourceSample) else {})
    where = "the prepared dataset" if manifest is not None else "the rows looked at"
    if counts:
        yield ok(
            "classes", f"in {where}: " + ", ".join(f"{name} {count:,}" for name, count in counts.most_common() if count)
        )
    named = {source.class_name for source in data.sources}
    has_fields = any(source.class_field is not None for source in data.sources)
    for name in specs:
        if not has_fields and name not in named:
            yield warning("classes", f"{name}: no source has this class", "remove it, or name it in a source")
        elif counts and not counts[name]:
            yield warning("classes", f"{name}: no conversation in {where}", "is its name spelled as in the data?")
    if len(counts) == 1 and not any(source.reward_field for source in data.sources):
        yield warning(
            "classes", "there is one class: nothing can be learnt from a difference", "fine for plain fine-tuning"
        )


def check_prepared_data(facts: Facts) -> Iterator[Finding]:
    """Whether `ochat train` could begin at once."""
    folder, remedy = facts.recipe.data.prepared_dir, "run `ochat prepare` with this recipe"
    _ = facts.tokenizer  # where it is missing, nothing can be compared
    try:
        manifest = facts.prepared
    except UserError as error:
        finding = from_error("prepared", error)
        yield warning("prepared", finding.finding, finding.remedy or remedy)
        return
    if manifest is None:
        yield warning("prepared", f"{folder}: not prepared yet", remedy)
        return
    splits = ", ".join(f"{name} {counts.conversations:,}" for name, counts in manifest.splits.items())
    yield ok("prepared", f"{folder}: made from this recipe ({splits})")


def _prepared(facts: Facts) -> Manifest | None:
    try:
        return facts.prepared
    except UserError:
        return None


def _is_prepared(facts: Facts) -> bool:
    return _prepared(facts) is not None
