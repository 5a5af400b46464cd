"""Writes the rows of a prepared dataset, as `dataset.py` reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa

from data_pipeline.files import write_text
from data_pipeline.prepared.dataset import DATA_FILE, SCHEMAS, SPLITS, Split


class PreparedWriter:
    """Writes the rows of all splits into a folder that is not visible under its final name yet."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writers = {}
        for split in SPLITS:
            (folder / split).mkdir(parents=True)
            self._writers[split] = pa.ipc.new_stream(str(folder / split / DATA_FILE), SCHEMAS[split])

    def write(self, split: Split, batch: pa.RecordBatch) -> None:
        """Append rows."""
        if batch.num_rows:
            self._writers[split].write_batch(batch)

    def close(self, *, fingerprint: str) -> None:
        """Finish the files and describe them as `datasets.load_from_disk` expects."""
        for split, writer in self._writers.items():
            writer.close()
            write_text(
                self._folder / split / "dataset_info.json", json.dumps({"features": _hugging_face_features(split)})
            )
            state: dict[str, Any] = {
                "_data_files": [{"filename": DATA_FILE}],
                "_fingerprint": f"{fingerprint[:16]}-{split}",
                "_format_columns": None,
                "_format_kwargs": {},
                "_format_type": None,
                "_output_all_columns": False,
                "_split": split,
            }
            write_text(self._folder / split / "state.json", json.dumps(state))
        write_text(self._folder / "dataset_dict.json", json.dumps({"splits": list(SPLITS)}))


def _hugging_face_features(split: Split) -> dict[str, Any]:
    """A split's schema as `datasets` writes it. Importing `datasets` would take longer than a small preparation."""

    def feature(kind: pa.DataType) -> dict[str, Any]:
        if pa.types.is_list(kind):
            return {"feature": feature(kind.value_type), "_type": "List"}
        return {"dtype": {"double": "float64", "float": "float32"}.get(str(kind), str(kind)), "_type": "Value"}

    return {column.name: feature(column.type) for column in SCHEMAS[split]}
