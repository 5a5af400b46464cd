"""Writes Parquet in the layout of OpenChat's generate_dataset, without any code of ours: the truth of the tests.

Role prefix and text of a message are tokenized apart, as OpenChat does; weights and labels are shifted by one here.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
from tokenizers import AddedToken, Tokenizer

CONTROL = {
    "openchat_v3.2": ("<|end_of_turn|>",),
    "openchat_v3.2_mistral": ("<|end_of_turn|>",),
    "openchat_3.6": ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
}
COLUMNS = {
    "total_length": pa.int32(),
    "num_seqs": pa.float32(),
    "seqlens": pa.list_(pa.int32()),
    "nz_input_ids": pa.list_(pa.int32()),
    "nz_position_ids": pa.list_(pa.int32()),
    "nz_shifted_label_ids": pa.list_(pa.int32()),
    "nz_shifted_loss_weights": pa.list_(pa.float32()),
}


class OpenChatWriter:
    """Tokenizes OpenChat's own JSONL rows for a model type."""

    def __init__(self, tokenizer_dir: Path, model_type: str, *, bos: str | None, per_sequence: bool = False) -> None:
        self.tokenizer = Tokenizer.from_file(str(tokenizer_dir / "tokenizer.json"))
        self.tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in CONTROL[model_type]])
        self.tokenizer.encode_special_tokens = True
        self.model_type, self._bos, self._per_sequence = model_type, bos, per_sequence

    def text(self, text: str) -> list[int]:
        """Ids of a plain text."""
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def _prefix(self, role: str, condition: str) -> list[int]:
        name = f"{condition} {role.title()}".strip()
        if self.model_type != "openchat_3.6":
            return self.text(f"{name}:")
        open_id, close_id = (self.tokenizer.token_to_id(token) for token in CONTROL[self.model_type][:2])
        return [open_id, *self.text(name), close_id, *self.text("\n\n")]

    def tokens(self, row: dict[str, Any]) -> tuple[list[int], list[float]]:
        """Ids and the weight of each."""
        end = [self.tokenizer.token_to_id(CONTROL[self.model_type][-1])]
        parts = [([self.tokenizer.token_to_id(self._bos)] if self._bos else [], 0.0)]
        if row.get("system"):
            if self.model_type == "openchat_3.6":
                parts.append((self._prefix("system", ""), 0.0))
            parts += [(self.text(row["system"]) + end, 0.0)]
        for item in row["items"]:
            parts.append((self._prefix(item["role"], row["condition"]), 0.0))
            content = self.text(item["content"]) + end
            parts.append((content, item["weight"] / len(content) if self._per_sequence else item["weight"]))
        return [i for ids, _ in parts for i in ids], [weight for ids, weight in parts for _ in ids]

    def row(self, row: dict[str, Any], *, max_context: int = 8192) -> dict[str, Any] | None:
        """A row of the file; None where nothing is learned from."""
        ids, weights = (values[:max_context] for values in self.tokens(row))
        while weights and weights[-1] == 0:
            weights.pop()
        ids = ids[: len(weights)]
        if not ids:
            return None
        labels = [token if weight else 0 for token, weight in zip(ids, weights, strict=True)]
        return {
            "total_length": len(ids),
            "num_seqs": sum(weights[1:]),
            "seqlens": [len(ids)],
            "nz_input_ids": ids,
            "nz_position_ids": list(range(len(ids))),
            "nz_shifted_label_ids": [*labels[1:], 0],
            "nz_shifted_loss_weights": [*weights[1:], 0.0],
        }

    def rows(self, rows: Sequence[dict[str, Any]], **more: Any) -> list[dict[str, Any]]:
        """Rows of a file, without those in which nothing is learned from."""
        return [written for row in rows if (written := self.row(row, **more)) is not None]


def grouped(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Several rows as one."""
    joined = {
        name: [value for row in rows for value in row[name]]
        for name in COLUMNS
        if name not in ("total_length", "num_seqs")
    }
    return {
        **joined,
        "total_length": sum(r["total_length"] for r in rows),
        "num_seqs": sum(r["num_seqs"] for r in rows),
    }


def write_parquet(path: Path, rows: Sequence[dict[str, Any]], *, metadata: dict[str, Any] | None) -> Path:
    """A file of such rows; metadata: what `metadata_json` of the schema holds, None for a schema without."""
    schema = pa.schema(COLUMNS, metadata=None if metadata is None else {"metadata_json": json.dumps(metadata)})
    parquet.write_table(pa.Table.from_pylist(list(rows), schema=schema), path)
    return path
