"""Some rows of a source, for looking at it without reading it whole."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Generic, TypeVar

from data_pipeline.read.openchat_parquet import BatchChunk, tokenized_chunks
from data_pipeline.read.sources import Chunk, chunks, count_rows, read_chunk
from data_pipeline.settings import SourceSettings

C = TypeVar("C", Chunk, BatchChunk)


@dataclass(frozen=True, kw_only=True)
class Sample(Generic[C]):
    """The first `most_per_chunk` rows (None: all) of some chunks. num_rows: of the whole source."""

    chunks: Sequence[C]
    most_per_chunk: int | None
    num_rows: int


def sample_source(
    source: SourceSettings, *, template: str, where: str, most_rows: int
) -> Sample[Chunk] | Sample[BatchChunk]:
    """About `most_rows` rows of a source of any format. Raises UserError for files that cannot be read."""
    if source.row_format.holds_tokens:
        return first_sample(tokenized_chunks(source, template, where=where), most_conversations=most_rows)
    return spread_sample(chunks(source, where=where), most_rows=most_rows)


def spread_sample(parts: Iterable[Chunk], *, most_rows: int, num_chunks: int = 32) -> Sample[Chunk]:
    """About `most_rows` rows, from `num_chunks` to twice as many chunks that are spread evenly over a source."""
    kept: list[Chunk] = []
    stride, num_rows = 1, 0
    for number, chunk in enumerate(parts):
        num_rows += count_rows(chunk)
        if number % stride == 0:
            kept.append(chunk)
        if len(kept) == 2 * num_chunks:
            kept, stride = kept[::2], 2 * stride
    return Sample(chunks=kept, most_per_chunk=-(-most_rows // max(1, len(kept))), num_rows=num_rows)


def sampled_rows(sample: Sample[Chunk]) -> list[tuple[str, Any]]:
    """The sampled rows, each with its place."""
    return [row for chunk in sample.chunks for row in islice(read_chunk(chunk), sample.most_per_chunk)]


def first_sample(parts: Iterable[BatchChunk], *, most_conversations: int) -> Sample[BatchChunk]:
    """The first chunks that together hold `most_conversations`; of chunks that are in memory, few are kept."""
    kept: list[BatchChunk] = []
    num_conversations, num_rows = 0, 0
    for chunk in parts:
        if num_conversations < most_conversations:
            kept.append(chunk)
            num_conversations += chunk.num_conversations
        num_rows += chunk.batch.num_rows
    return Sample(chunks=kept, most_per_chunk=None, num_rows=num_rows)
