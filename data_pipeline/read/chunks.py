"""Pieces of a source. A piece is small, can be sent to another process, and is read there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc


@dataclass(frozen=True, kw_only=True)
class ChunkSizes:
    """How large chunks are: enough to keep a worker busy for a second, and little enough to balance the workers.

    lines_bytes: of a file of JSON lines. num_rows: of rows that come parsed (JSON lists, tables, datasets).
    """

    lines_bytes: int = 2 << 20
    num_rows: int = 1024


@dataclass(frozen=True, kw_only=True)
class LinesChunk:
    """Bytes `start:end` of a UTF-8 file; they begin at line `first_line` (1-based) and end at a line's end."""

    path: str
    start: int
    end: int
    first_line: int


@dataclass(frozen=True, kw_only=True)
class TextChunk:
    """Lines of a file that is packed or not UTF-8, as UTF-8; the first is line `first_line` (1-based)."""

    path: str
    lines: bytes
    first_line: int


@dataclass(frozen=True, kw_only=True)
class ParquetChunk:
    """One row group of a Parquet file; its first row is row `first_row` (1-based) of the file."""

    path: str
    row_group: int
    first_row: int


@dataclass(frozen=True, kw_only=True)
class ArrowChunk:
    """Rows of an Arrow file; the first is row `first_row` (1-based)."""

    path: str
    first_row: int
    batch: pa.RecordBatch


@dataclass(frozen=True, kw_only=True)
class RowsChunk:
    """Rows that are parsed already: (place, row)."""

    rows: Sequence[tuple[str, Any]]


@dataclass(frozen=True, kw_only=True)
class TokenizedChunk:
    """Rows of tokens (`openchat_parquet.py`) of a file; the first is row `first_row` (1-based)."""

    path: str
    first_row: int
    batch: pa.RecordBatch

    @property
    def num_conversations(self) -> int:
        """Conversations of all rows, as far as their lengths tell."""
        return int(pc.sum(pc.list_value_length(self.batch.column("seqlens"))).as_py() or 0)


Chunk = LinesChunk | TextChunk | ParquetChunk | ArrowChunk | RowsChunk  # of rows of text
AnyChunk = Chunk | TokenizedChunk
