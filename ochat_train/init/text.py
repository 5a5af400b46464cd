"""What `ochat init` shows: what was found in the files, what was decided from it, and what is missing."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Sequence
from functools import partial

from data_pipeline.conversation import Conversation, TaggedConversation
from data_pipeline.errors import UserError
from data_pipeline.look.raw import SourceLook, under_inference_condition
from data_pipeline.look.samples import spread, training_text
from data_pipeline.look.text import table
from data_pipeline.prompt.render import render
from data_pipeline.prompt.rendered import RenderedConversation
from data_pipeline.prompt.template import Template
from data_pipeline.prompt.templates import TEMPLATES
from data_pipeline.text_rules import shown
from ochat_train.init.base import Base
from ochat_train.init.draft import Draft, Lengths

_EXAMPLES = 2  # of rows that cannot be read, by reason


def looks_text(looks: Sequence[SourceLook], lengths: Lengths, base: Base | None) -> str:
    """A table of the files, their fields, and the rows that cannot be read."""
    head = ("file", "format", "rows", "looked at", "unreadable", "system/user/assistant", "tokens mean/longest (of)")
    about = "" if lengths.exact else "~"
    rows = [
        (
            look.path,
            look.format + ("" if str(look.layout) == f"format: {look.format}" else " *"),
            f"{look.num_rows:,}",
            f"{look.num_sampled:,}",
            f"{look.num_bad:,}",
            "/".join(f"{look.roles[role]:,}" for role in ("system", "user", "assistant")),
            f"{about}{tokens.mean():,.0f}/{about}{tokens.max():,} ({len(tokens):,})",
        )
        for look, tokens in zip(looks, lengths.by_source, strict=True)
    ]
    parts = [table(head, rows)]
    if not lengths.exact:
        where = "no base was named" if base is None else f"the tokenizer of {base.name} is not on this machine"
        parts.append(f"tokens are estimated from characters: {where}")
    parts += [f"* {look.path}: read as `{look.layout}`" for look in looks if "," in str(look.layout)]
    for look in looks:
        parts += [f"{look.path}: {line}" for line in (*_field_lines(look), *_unread_lines(look), *_bad_lines(look))]
    return "\n".join(parts)


def _field_lines(look: SourceLook) -> Iterator[str]:
    for name, seen in look.fields.items():
        known = f"field `{name}`" + (f" in {seen.num_rows:,} rows" if seen.num_rows < len(look.conversations) else "")
        if seen.numbers is not None:
            yield f"{known}: a number from {seen.numbers[0]:g} to {seen.numbers[1]:g}"
        elif seen.values is not None:
            counts = (f"{shown(value)[1:-1]} {count:,}" for value, count in seen.values.most_common())
            yield f"{known}: {', '.join(counts)}"


def _unread_lines(look: SourceLook) -> Iterator[str]:
    for unread in look.unread:
        yield f"{unread.message} (first in {unread.place}); `ochat prepare` stops there"


def rows_text(look: SourceLook, template: str) -> str:
    """Three conversations in the template's format; the heading says with which condition, as none is chosen yet."""
    example = TEMPLATES[template].inference_condition
    condition = f"with the condition {example!r} as an example" if example else "still without a condition"
    head = f"{look.path} in the format {template}, {condition}; the recipe adds that of each class"
    return "\n".join([head, *map(partial(_row_text, TEMPLATES[template]), spread(look.conversations))])


def _row_text(template: Template, conversation: Conversation) -> str:
    def rows(item: TaggedConversation) -> Sequence[RenderedConversation]:
        return (RenderedConversation(tagged=item, segments=render(item, template, bos_token=None)),)

    text = training_text(under_inference_condition(conversation, template), rows)
    return f"  {conversation.place}:\n" + textwrap.indent(text, "    ")


def _bad_lines(look: SourceLook) -> Iterator[str]:
    for reason, count in look.ledger.bad.most_common():
        yield f"unreadable, {reason}: {count:,}"
        for example in look.ledger.examples[reason][:_EXAMPLES]:
            yield f"  {example}"


def draft_text(draft: Draft) -> str:
    """The decisions and their reasons."""
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
        ("train.plan", draft.plan.value, draft.plan.reason),
        ("train.epochs", str(draft.epochs.value), draft.epochs.reason),
        ("adapter.type", draft.adapter.value, draft.adapter.reason),
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


def unreadable_text(looks: Sequence[SourceLook]) -> str | None:
    """How many of the sampled rows cannot be read, None if all can."""
    num_bad, num_rows = sum(look.num_bad for look in looks), sum(look.num_sampled for look in looks)
    return f"{num_bad:,} of {num_rows:,} sampled rows cannot be read" if num_bad else None


def missing_flags(*, base: bool, out: bool, classes: Sequence[str]) -> UserError:
    """The error where nobody can be asked. base, out: whether that flag is missing; classes: those without a flag."""
    flags = ["--base HUB_ID_OR_FOLDER"] if base else []
    flags += ["--out RECIPE"] if out else []
    flags += [f"--class {_quoted(f'{name}=CONDITION:REWARD')}" for name in classes]
    explained = (
        "CONDITION becomes part of the role prefixes and may be empty; a REWARD that is 1 lower weighs a tenth. See "
        "docs/init-and-check.md"
    )
    lines = ["there is no terminal to ask on, please add", *(f"  {flag}" for flag in flags)]
    return UserError("missing options", "\n".join([*lines, explained] if classes else lines))


def _quoted(text: str) -> str:
    """A word as a shell takes it."""
    return text if re.fullmatch(r"[\w.:/=-]+", text) else f'"{text}"'
