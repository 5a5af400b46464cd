"""Held-out conversations under the other conditions: what a model's condition matrix is measured on.

The model has learnt a condition if answers of its class are more likely after it than after another class's condition.
So a held-out conversation is prepared once under its own condition (split `validation`) and once under each of the
others (split `conditions`), with the same supervised text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa

from data_pipeline.conversation import Segment, TaggedConversation
from data_pipeline.errors import RowError
from data_pipeline.held_out import CONDITION_ROWS_PER_CLASS
from data_pipeline.prepare.columns import row_batch
from data_pipeline.prepare.job import PrepareJob
from data_pipeline.prompt.length_rule import CutConversation, LengthRule
from data_pipeline.prompt.prompt_format import Renderer, renderer_of
from data_pipeline.prompt.tokenization import TemplateTokenizer

_BATCH = 1000


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """A held-out conversation that was kept whole: its row in the validation split and its supervised tokens."""

    validation_row: int
    tagged: TaggedConversation
    num_supervised_tokens: int


def condition_rows(
    held_out: Sequence[HeldOut],
    condition_ids: Mapping[str, int],
    class_ids: Mapping[str, int],
    job: PrepareJob,
    *,
    most_per_class: int = CONDITION_ROWS_PER_CLASS,
) -> Iterator[pa.RecordBatch]:
    """Rows of the split `conditions`, for at most `most_per_class` conversations of each class.

    A conversation that is too long under one of the conditions, or that gets other supervised tokens there, is left out
    under all of them: the matrix compares the same text in every column.
    """
    chosen = _sample(held_out, job.seed, most_per_class)
    if not chosen:  # no tokenizer has to be made
        return
    tokenizer = TemplateTokenizer(job.tokenizer)
    render = renderer_of(job.template, job.tokenizer)
    rule = LengthRule.of(job.template, tokenizer, max_length_tokens=job.max_length_tokens)
    for start in range(0, len(chosen), _BATCH):
        batch = chosen[start : start + _BATCH]
        pairs = [(item, name) for item in batch for name in condition_ids if name != item.tagged.condition]
        rendered = [_segments_under(render, item.tagged, name) for item, name in pairs]
        results = iter(tokenizer.tokenize([segments for segments in rendered if segments is not None]))
        tokenized = [None if segments is None else next(results) for segments in rendered]
        cuts = [None if tokens is None or isinstance(tokens, RowError) else rule.cut(tokens) for tokens in tokenized]
        unfit = {
            item.validation_row
            for (item, _), cut in zip(pairs, cuts, strict=True)
            if cut is None or cut.is_truncated or cut.num_supervised != item.num_supervised_tokens
        }
        kept = [
            (item, name, cut)
            for (item, name), cut in zip(pairs, cuts, strict=True)
            if item.validation_row not in unfit and cut is not None
        ]
        if kept:
            yield _with_ids(kept, condition_ids, class_ids)


def _segments_under(render: Renderer, tagged: TaggedConversation, condition: str) -> tuple[Segment, ...] | None:
    """The segments of a prepared row under a condition; None where it is not one row there."""
    try:
        found = render(replace(tagged, condition=condition))
    except RowError:
        return None
    return found[0].segments if len(found) == 1 else None


def _sample(held_out: Sequence[HeldOut], seed: int, most_per_class: int) -> list[HeldOut]:
    """The first of each class in an order that does not depend on the order of the sources."""

    def key(item: HeldOut) -> bytes:
        return hashlib.blake2b(f"{seed}\0{item.validation_row}".encode(), digest_size=8).digest()

    taken: dict[str, int] = {}
    chosen = []
    for item in sorted(held_out, key=key):
        taken[item.tagged.class_name] = taken.get(item.tagged.class_name, 0) + 1
        if taken[item.tagged.class_name] <= most_per_class:
            chosen.append(item)
    return sorted(chosen, key=lambda item: item.validation_row)


def _with_ids(
    kept: Sequence[tuple[HeldOut, str, CutConversation]], condition_ids: Mapping[str, int], class_ids: Mapping[str, int]
) -> pa.RecordBatch:
    items = [item for item, _, _ in kept]
    rows = row_batch([item.tagged.conversation.id for item in items], [cut for _, _, cut in kept])
    rows = rows.add_column(1, "class_id", pa.array([class_ids[item.tagged.class_name] for item in items], pa.int32()))
    rows = rows.add_column(2, "condition_id", pa.array([condition_ids[name] for _, name, _ in kept], pa.int32()))
    return rows.append_column("validation_row", pa.array([item.validation_row for item in items], pa.int32()))
