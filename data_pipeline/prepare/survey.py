"""The scores of all rows, read once before the first row gets its weight or its quantile class."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping

import numpy as np

from data_pipeline.class_names import known_class
from data_pipeline.classes.rewards import RewardFacts, needs_scores, reward_facts
from data_pipeline.prepare.workers import over_chunks
from data_pipeline.read import sources
from data_pipeline.read.chunks import ChunkSizes, TokenizedChunk
from data_pipeline.read.conversations import BadRow, SourceChunk, parse_rows
from data_pipeline.settings.data import DataSettings

ClassScores = Mapping[str, np.ndarray]  # class -> float64[rows], in the order of the rows


def survey(data: DataSettings, *, num_workers: int, sizes: ChunkSizes) -> RewardFacts:
    """Read the scores of all sources that have some, and find what they decide. Raises UserError as `reward_facts`.

    Chunks are read in the workers. Their scores are joined in order, so the result is the same for any number.
    """
    if not needs_scores(data):
        return reward_facts(data, {})
    parts: dict[str, list[np.ndarray]] = {}
    for scores in over_chunks(functools.partial(ChunkScores, data), _scored_chunks(data, sizes), num_workers):
        for name, values in scores.items():
            parts.setdefault(name, []).append(values)
    return reward_facts(data, {name: np.concatenate(values) for name, values in parts.items()})


def _scored_chunks(data: DataSettings, sizes: ChunkSizes) -> Iterator[SourceChunk]:
    for number, source in enumerate(data.sources):
        if data.scored_by is not None or source.reward_field is not None:
            for chunk in sources.chunks(source, where=f"data.sources.{number}", sizes=sizes):
                yield SourceChunk(source=number, chunk=chunk)


class ChunkScores:
    """Reads the scores of a chunk's usable rows, by class ("" where quantiles will decide it).

    Rows that cannot be used are passed over; the preparation reports them.
    """

    def __init__(self, data: DataSettings) -> None:
        self._data = data

    def __call__(self, part: SourceChunk) -> ClassScores:
        """The scores of one chunk."""
        assert not isinstance(part.chunk, TokenizedChunk), "rows of tokens have no scores; checked by DataSettings"
        data, source = self._data, self._data.sources[part.source]
        scores: dict[str, list[float]] = {}
        rows = sources.read_chunk(part.chunk)
        for row in parse_rows(rows, source=source, scored_by=data.scored_by, ignored=data.ignore_fields):
            if isinstance(row, BadRow):
                continue
            name = source.class_name or known_class(row.class_value or "", data.classes)
            assert row.score is not None, "RowReader reads it"
            if data.scored_by is not None or name in data.classes:
                scores.setdefault(name, []).append(row.score)
        return {name: np.array(values) for name, values in scores.items()}
