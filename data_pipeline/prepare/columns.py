"""Rows of a prepared dataset, collected column by column."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from data_pipeline.prompt.length_rule import CutConversation


@dataclass(kw_only=True)
class RowColumns:
    """Prepared rows, column by column."""

    ids: list[np.ndarray] = field(default_factory=list)
    weights: list[np.ndarray] = field(default_factory=list)
    num_supervised: list[int] = field(default_factory=list)
    truncated: list[bool] = field(default_factory=list)
    tail_trimmed: list[bool] = field(default_factory=list)

    def add(self, cut: CutConversation) -> None:
        """Append one row."""
        self.ids.append(cut.tokens.input_ids)
        self.weights.append(cut.tokens.loss_weights)
        self.num_supervised.append(cut.num_supervised)
        self.truncated.append(cut.is_truncated)
        self.tail_trimmed.append(cut.num_trimmed > 0)

    def batch(self, identifiers: list[str]) -> pa.RecordBatch:
        """All rows as one record batch, without `class_id` and `condition_id`."""
        lengths = np.array([len(row) for row in self.ids], dtype=np.int32)
        offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
        sums = [float(row.sum(dtype=np.float64)) for row in self.weights]
        ids = np.concatenate(self.ids) if self.ids else np.zeros(0, np.int32)
        weights = np.concatenate(self.weights) if self.weights else np.zeros(0, np.float32)
        columns = {
            "id": pa.array(identifiers, pa.string()),
            "num_tokens": pa.array(lengths),
            "num_supervised_tokens": pa.array(self.num_supervised, pa.int32()),
            "weight_sum": pa.array(sums, pa.float64()),
            "input_ids": pa.ListArray.from_arrays(offsets, pa.array(ids)),
            "loss_weights": pa.ListArray.from_arrays(offsets, pa.array(weights)),
        }
        return pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))
