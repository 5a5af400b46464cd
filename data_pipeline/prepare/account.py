"""The account of a preparation: what became of every row, and what splits and classes hold."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from data_pipeline.ledger import Tally
from data_pipeline.prepare.chunk_result import ChunkResult
from data_pipeline.prepare.condition_rows import HeldOut
from data_pipeline.prepare.counts import ClassCounts
from data_pipeline.prepared.dataset import Split, SplitCounts
from data_pipeline.read.conversations import SeenIds


@dataclass(kw_only=True)
class Account:
    """Adds up the chunks of all sources, in order."""

    classes: ClassCounts
    tally: Tally = field(default_factory=Tally)
    splits: dict[Split, SplitCounts] = field(
        default_factory=lambda: {"train": SplitCounts(), "validation": SplitCounts()}
    )
    held_out: list[HeldOut] = field(default_factory=list)
    _seen_ids: defaultdict[int, SeenIds] = field(default_factory=lambda: defaultdict(SeenIds))  # by source

    def add(self, result: ChunkResult) -> dict[Split, pa.RecordBatch]:
        """Count a chunk; returns its rows for each split, complete with class and condition ids."""
        self.tally.add(result.tally)
        kept = self._without_duplicates(result)
        self._count(result, kept)
        columns = self.classes.add(result, kept)
        is_held_out = np.array([row.is_held_out for row in result.rows], dtype=bool)
        self._collect_held_out(result, kept & is_held_out)
        masks: dict[Split, np.ndarray] = {"train": kept & ~is_held_out, "validation": kept & is_held_out}
        parts = {split: columns if mask.all() else columns.filter(pa.array(mask)) for split, mask in masks.items()}
        self.splits = {split: _plus(counts, parts[split]) for split, counts in self.splits.items()}
        return parts

    def _without_duplicates(self, result: ChunkResult) -> np.ndarray:
        """bool[rows]: which rows stay. The second conversation with an id of the same source is a bad row."""
        kept = np.ones(len(result.rows), dtype=bool)
        seen = self._seen_ids[result.source]
        for number, row in enumerate(result.rows):
            if row.own_id is not None and (bad := seen.check(row.own_id, place=row.place)) is not None:
                kept[number] = False
                self.tally.drop(bad.reason, bad.place, bad.message, bad=True)
        return kept

    def _count(self, result: ChunkResult, kept: np.ndarray) -> None:
        rows = [row for row, stays in zip(result.rows, kept, strict=True) if stays]
        self.tally.num_kept += len(rows)
        self.tally.num_truncated += sum(row.is_truncated for row in rows)
        self.tally.num_tail_trimmed += sum(row.is_tail_trimmed for row in rows)
        self.tally.num_control_text_kept_plain += sum(row.has_control_text for row in rows)
        self.tally.num_empty_end_cut += sum(row.has_empty_end for row in rows)
        self.tally.num_condition_left_out += sum(row.lost_condition for row in rows)

    def _collect_held_out(self, result: ChunkResult, held_out: np.ndarray) -> None:
        """Note whole held-out conversations with their rows in the validation split; held_out: bool[rows], the kept."""
        validation_rows = self.splits["validation"].conversations + np.cumsum(held_out) - 1
        supervised = result.columns.column("num_supervised_tokens")
        self.held_out += [
            HeldOut(
                validation_row=int(validation_rows[row]), tagged=tagged, num_supervised_tokens=supervised[row].as_py()
            )
            for row, tagged in result.held_out.items()
            if held_out[row]
        ]


def _plus(counts: SplitCounts, rows: pa.RecordBatch) -> SplitCounts:
    return SplitCounts(
        conversations=counts.conversations + rows.num_rows,
        tokens=counts.tokens + int(rows.column("num_tokens").to_numpy().sum()),
        supervised_tokens=counts.supervised_tokens + int(rows.column("num_supervised_tokens").to_numpy().sum()),
    )
