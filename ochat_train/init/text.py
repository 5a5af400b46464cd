"""What `ochat init` shows: what was seen in the files, and what was decided from it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from data_pipeline.look.raw import SourceLook
from data_pipeline.text_rules import shown
from ochat_train.init.base import Base
from ochat_train.init.draft import Draft, Lengths
from ochat_train.report.tables import table

_EXAMPLES = 2  # of rows that cannot be read, by reason


def looks_text(looks: Sequence[SourceLook], lengths: Lengths, base: Base | None) -> str:
    """A table of the files, their fields, and the rows that cannot be read."""
    head = ("file", "format", "rows", "looked at", "unreadable", "system/user/assistant", "tokens mean/longest")
    about = "" if lengths.exact else "~"
    rows = [
        (
            look.path,
            look.format,
            f"{look.num_rows:,}",
            f"{look.num_sampled:,}",
            f"{look.num_bad:,}",
            "/".join(f"{look.roles[role]:,}" for role in ("system", "user", "assistant")),
            f"{about}{tokens.mean():,.0f}/{about}{tokens.max():,}",
        )
        for look, tokens in zip(looks, lengths.by_source, strict=True)
    ]
    parts = [table(head, rows)]
    if not lengths.exact:
        where = "no base was named" if base is None else f"the tokenizer of {base.name} is not on this machine"
        parts.append(f"tokens are estimated from characters: {where}")
    for look in looks:
        parts += [f"{look.path}: {line}" for line in (*_field_lines(look), *_bad_lines(look))]
    return "\n".join(parts)


def _field_lines(look: SourceLook) -> Iterator[str]:
    for name, seen in look.fields.items():
        known = f"field `{name}`" + (f" in {seen.num_rows:,} rows" if seen.num_rows < len(look.conversations) else "")
        if seen.numbers is not None:
            yield f"{known}: a number from {seen.numbers[0]:g} to {seen.numbers[1]:g}"
        elif seen.values is not None:
            counts = (f"{shown(value)[1:-1]} {count:,}" for value, count in seen.values.most_common())
            yield f"{known}: {', '.join(counts)}"


def _bad_lines(look: SourceLook) -> Iterator[str]:
    for reason, count in look.ledger.bad.most_common():
        yield f"unreadable, {reason}: {count:,}"
        for example in look.ledger.examples[reason][:_EXAMPLES]:
            yield f"  {example}"


def draft_text(draft: Draft) -> str:
    """The decisions with their reasons."""
    rows = [
        *(
            (f"class of {source.look.path}", _class_text(source.class_name, source.class_field), source.reason)
            for source in draft.sources
        ),
        ("model.template", draft.template.value, draft.template.reason),
        ("model.max_length_tokens", str(draft.max_length.value), draft.max_length.reason),
        ("train.pack_length_tokens", str(draft.pack_length.value), draft.pack_length.reason),
        (
            "train.tokens_per_step",
            str(draft.tokens_per_step.value),
            f"{draft.tokens_per_step.reason} ({draft.gpus} GPU(s))",
        ),
        ("train.epochs", str(draft.epochs.value), draft.epochs.reason),
        ("optimizer.learning_rate", draft.learning_rate.value, draft.learning_rate.reason),
        ("data.validation_ratio", str(draft.validation_ratio.value), draft.validation_ratio.reason),
        ("data.bad_rows", draft.bad_rows.value, draft.bad_rows.reason),
        ("checkpoint.save_every_steps", str(draft.save_every.value), draft.save_every.reason),
    ]
    return table(("decided", "value", "because"), rows)


def _class_text(class_name: str | None, class_field: str | None) -> str:
    if class_name is not None:
        return class_name
    return "of each row" if class_field is None else f"field {class_field}"
