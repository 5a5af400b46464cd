"""What a worker sends back for a chunk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from data_pipeline.conversation import TaggedConversation
from data_pipeline.ledger import Tally


@dataclass(frozen=True, kw_only=True, slots=True)
class KeptRow:
    """What the main process has to know of a row, besides its tokens.

    own_id: the id that the row names itself, None where its place serves as one.
    condition: the one it is prompted with; lost_condition: whether condition dropout left out that of its class.
    has_control_text: whether a text spells a control token. has_empty_end: whether empty messages at its end were left
    out.
    """

    place: str
    own_id: str | None
    class_name: str
    condition: str
    is_held_out: bool
    is_truncated: bool
    is_tail_trimmed: bool
    has_control_text: bool
    lost_condition: bool
    has_empty_end: bool


@dataclass(frozen=True, kw_only=True)
class ChunkResult:
    """The rows of one chunk. Class names become ids in the main process, which also finds rows whose id is taken.

    columns: the prepared rows, without `class_id` and `condition_id`. rows: one for each of them.
    conditions: of each class that a row of the chunk has, rows included that were dropped because of their length.
    held_out: row -> conversation, of the held-out rows that were kept whole.
    tally: every conversation read, and those that were dropped here.
    """

    source: int
    columns: pa.RecordBatch
    rows: Sequence[KeptRow]
    conditions: dict[str, str]
    held_out: dict[int, TaggedConversation]
    tally: Tally
