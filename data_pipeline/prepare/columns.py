"""Prepared rows as columns."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from data_pipeline.prompt.length_rule import CutConversation


def row_batch(identifiers: Sequence[str], cuts: Sequence[CutConversation]) -> pa.RecordBatch:
    """Rows as one record batch of the prepared dataset's schema, without `class_id` and `condition_id`."""
    ids, weights = ([c.tokens.input_ids for c in cuts], [c.tokens.loss_weights for c in cuts])
    lengths = np.array([len(row) for row in ids], dtype=np.int32)
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
    all_ids = np.concatenate(ids) if ids else np.zeros(0, np.int32)
    all_weights = np.concatenate(weights) if weights else np.zeros(0, np.float32)
    columns = {
        "id": pa.array(identifiers, pa.string()),
        "num_tokens": pa.array(lengths),
        "num_supervised_tokens": pa.array([cut.num_supervised for cut in cuts], pa.int32()),
        "weight_sum": pa.array([float(row.sum(dtype=np.float64)) for row in weights], pa.float64()),
        "input_ids": pa.ListArray.from_arrays(offsets, pa.array(all_ids)),
        "loss_weights": pa.ListArray.from_arrays(offsets, pa.array(all_weights)),
    }
    return pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))
