"""Some rows of a source, for looking at it without reading it whole."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np

from data_pipeline.read.chunks import ArrowChunk, Chunk, ParquetChunk, RowsChunk, TokenizedChunk
from data_pipeline.read.openchat_parquet import tokenized_chunks
from data_pipeline.read.sources import chunks, count_rows, read_chunk, rows_at
from data_pipeline.settings.sources import SourceSettings

C = TypeVar("C", Chunk, TokenizedChunk)
_SEED = 0
_DECODED_TIMES = 4  # rows of Parquet and Arrow that are decoded for each row that is taken


@dataclass(frozen=True, kw_only=True)
class Sample(Generic[C]):
    """Chunks that hold some rows of a source. num_rows: of the whole source."""

    chunks: Sequence[C]
    num_rows: int


def sample_source(
    source: SourceSettings, *, template: str, where: str, most_rows: int
) -> Sample[Chunk] | Sample[TokenizedChunk]:
    """About `most_rows` rows of a source of any format. Raises UserError for files that cannot be read."""
    if source.row_format.holds_tokens:
        return first_sample(tokenized_chunks(source, template, where=where), most_conversations=most_rows)
    return spread_sample(chunks(source, where=where), most_rows=most_rows)


def spread_sample(parts: Iterable[Chunk], *, most_rows: int, num_chunks: int = 32) -> Sample[Chunk]:
    """About `most_rows` rows, in order: from `num_chunks` to twice as many chunks that are spread evenly over a source,
    rows taken at random, always the same ones.

    Files are often periodic (a question, then its answer by another model), so that every second row is no sample. Of a
    row group of Parquet or Arrow, rows come from its beginning, because all rows before them are decoded as well.
    """
    kept: list[Chunk] = []
    stride, num_rows = 1, 0
    for number, chunk in enumerate(parts):
        num_rows += count_rows(chunk)
        if number % stride == 0:
            kept.append(chunk)
        if len(kept) == 2 * num_chunks:
            kept, stride = kept[::2], 2 * stride
    most_per_chunk = -(-most_rows // max(1, len(kept)))
    random = np.random.default_rng(_SEED)
    return Sample(chunks=[_picked(chunk, most_per_chunk, random) for chunk in kept], num_rows=num_rows)


def _picked(chunk: Chunk, most_rows: int, random: np.random.Generator) -> Chunk:
    """A chunk with at most so many of its rows."""
    num_rows = count_rows(chunk)
    if num_rows <= most_rows:
        return chunk
    if isinstance(chunk, ParquetChunk | ArrowChunk):
        num_rows = min(num_rows, _DECODED_TIMES * most_rows)
    positions = np.sort(random.choice(num_rows, size=most_rows, replace=False))
    return RowsChunk(rows=list(rows_at(chunk, positions.tolist())))


def sampled_rows(sample: Sample[Chunk]) -> list[tuple[str, Any]]:
    """The sampled rows, each with its place."""
    return [row for chunk in sample.chunks for row in read_chunk(chunk)]


def first_sample(parts: Iterable[TokenizedChunk], *, most_conversations: int) -> Sample[TokenizedChunk]:
    """The first chunks that together hold `most_conversations`; of chunks that are in memory, few are kept."""
    kept: list[TokenizedChunk] = []
    num_conversations, num_rows = 0, 0
    for chunk in parts:
        if num_conversations < most_conversations:
            kept.append(chunk)
            num_conversations += chunk.num_conversations
        num_rows += chunk.batch.num_rows
    return Sample(chunks=kept, num_rows=num_rows)
