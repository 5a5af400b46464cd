"""The recipe as text: every line has a comment that a newcomer understands."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import yaml

from data_pipeline.formats.table import FORMATS
from data_pipeline.path_keys import written_path
from data_pipeline.text_rules import visible_line
from ochat_train.init.adapter import NONE, RANK
from ochat_train.init.classes import ClassedSource
from ochat_train.init.draft import BETA, Draft
from ochat_train.recipe.schema import schema_line

_COMMENT_COLUMN = 44
_LINE_LENGTH = 128
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*")


def recipe_text(draft: Draft, *, out: str) -> str:
    """The YAML text. out: the file that it is for, named in the commands at its head."""
    return "\n".join([*_head(draft, out), *_body(draft)]) + "\n"


def _head(draft: Draft, out: str) -> Iterator[str]:
    yield visible_line(schema_line(Path(out)))
    base, out = visible_line(draft.base.name), visible_line(out)
    quoted = shlex.quote(out)
    yield f"# {draft.name}: {base} on conversations of {len(draft.sources)} file(s). Written by `ochat init` after a"
    yield "# look at the data; every value may be changed. All keys: docs/recipe.md"
    yield "#"
    for command, meaning in (
        (f"ochat check {quoted} --gpus {draft.gpus}", "find what would stop a run; trains nothing"),
        (f"ochat prepare {quoted}", "turn the files into a prepared dataset"),
        (f"ochat plan {quoted} --gpus {draft.gpus}", "steps, learning rate, memory"),
        (f"./launch.sh {quoted}", "prepare if needed, then train on all GPUs"),
    ):
        yield f"#   {command:<60}  {meaning}"


def _body(draft: Draft) -> Iterator[str]:
    yield _line(f"name: {yaml_text(draft.name)}", "of the run, shown in logs and trackers")
    yield _line("seed: 0", "of validation split and packing; the same seed gives the same run")
    yield _line(f"output_dir: {yaml_text(f'runs/{draft.name}')}", "metrics, checkpoints and samples of the run")
    yield "model:"
    yield _line(f"  path: {yaml_text(written_path(draft.base.name))}", "the base model: a Hub id or a folder")
    yield _line(f"  template: {draft.template.value}", f"prompt format; {draft.template.reason}")
    yield _line(f"  max_length_tokens: {draft.max_length.value}", draft.max_length.reason)
    yield from _data(draft)
    yield "train:"
    yield _line(f"  epochs: {draft.epochs.value}", f"passes over the data; {draft.epochs.reason}")
    yield _line(
        f"  pack_length_tokens: {draft.pack_length.value}",
        f"a pack holds whole conversations; {draft.pack_length.reason}",
    )
    yield _line(
        f"  tokens_per_step: {draft.tokens_per_step.value}",
        f"tokens of one update, all GPUs; {draft.tokens_per_step.reason}",
    )
    yield _line(f"  plan: {draft.plan.value}", draft.plan.reason)
    yield "  # packs at a time, activation checkpointing and ZeRO stage are chosen from the memory of the GPUs"
    if draft.adapter.value != NONE:
        yield _line(f"adapter: {{type: {draft.adapter.value}, rank: {RANK}}}", draft.adapter.reason)
    yield "optimizer:"
    yield _line(f"  learning_rate: {draft.learning_rate.value}", draft.learning_rate.reason)
    yield "checkpoint:"
    yield _line(f"  save_every_steps: {draft.save_every.value}", draft.save_every.reason)
    yield _line("  keep_last: 2", "older checkpoints are deleted; the best validated one is also kept")
    yield "tracking:"
    yield _line("  tensorboard: true", "files for TensorBoard in the run folder; `wandb: true` for Weights & Biases")


def _data(draft: Draft) -> Iterator[str]:
    yield "data:"
    yield _line(
        f"  prepared_dir: {yaml_text(written_path(draft.prepared_dir))}", "`ochat prepare` writes the dataset here"
    )
    if draft.classes:
        yield "  # A class is a kind of conversation. Its condition is part of every role prefix of the prompt; its"
        yield "  # reward decides how much its answers count: weight = exp((reward - largest reward) / beta)."
        yield "  classes:"
        width = max(len(yaml_text(name)) for name in draft.classes) + 1
        for name, spec in draft.classes.items():
            assert spec.reward is not None, "classes.py reads it"
            key = f"{yaml_text(name)}:"
            yield f"    {key:<{width}} {{condition: {_quoted(spec.condition)}, reward: {spec.reward}}}"
        yield _line(f"  beta: {BETA}", "a reward that is 1 lower weighs a tenth")
    else:
        yield "  # No classes: each row carries its condition and its weights."
    yield "  sources:"
    for source in draft.sources:
        yield f"    # {source.look.num_rows:,} rows; {source.reason}"
        yield f"    - {_source(source)}"
        for unread in source.look.unread:
            name = visible_line(unread.name)
            yield f"    # `{name}` is not read: name it in `fields`, or in `ignore_fields` of `data`"
        for name, seen in source.look.fields.items():
            if seen.numbers is not None:
                yield f"    # `{visible_line(name)}` could be its reward (`reward_field`): docs/rewards.md"
    yield _line(f"  validation_ratio: {draft.validation_ratio.value}", f"held out; {draft.validation_ratio.reason}")
    yield _line("  overlong: truncate", "a conversation above max_length_tokens keeps its beginning; or drop, or error")
    yield _line(
        f"  bad_rows: {draft.bad_rows.value}", f"error: stop at bad rows, drop: count them; {draft.bad_rows.reason}"
    )


def _source(source: ClassedSource) -> str:
    look = source.look
    keys = {
        "path": written_path(look.path),
        "format": look.format,
        "class": source.class_name,
        "class_field": source.class_field,
    }
    parts = [f"{key}: {yaml_text(value)}" for key, value in keys.items() if value is not None]
    changes = look.layout.fields.changes(FORMATS[look.format].fields)
    if changes:
        parts.append("fields: {" + ", ".join(f"{k}: {yaml_text(str(v))}" for k, v in changes.items()) + "}")
    if look.has_pairs:
        parts.append("answer_classes: {" + ", ".join(f"{yaml_text(n)}: {yaml_text(n)}" for n in source.names) + "}")
    return "{" + ", ".join(parts) + "}"


def yaml_text(text: str) -> str:
    """A text so that YAML reads it back: plain if that is safe, otherwise in double quotes."""
    if _PLAIN.fullmatch(text) and yaml.safe_load(text) == text:
        return text
    return _quoted(text)


def _quoted(text: str) -> str:
    """A text in double quotes, on one line."""
    written: str = yaml.safe_dump(text, default_style='"', allow_unicode=True, width=math.inf)
    return written.rstrip("\n")


def _line(text: str, comment: str) -> str:
    """A line with its comment beside it, or above it if the line would be too long."""
    comment = f"# {visible_line(comment)}"
    beside = f"{text:<{_COMMENT_COLUMN}} {comment}"
    indent = " " * (len(text) - len(text.lstrip()))
    return beside if len(beside) <= _LINE_LENGTH else f"{indent}{comment}\n{text}"
