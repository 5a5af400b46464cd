"""Files of OpenChat's `ochat.data.generate_dataset`: the only file that knows their layout.

Every list of a row holds its conversations one after another:

    total_length              int32          tokens of the row
    num_seqs                  float32        sum of its loss weights (not a number of sequences)
    seqlens                   list<int32>    tokens of each conversation
    nz_input_ids              list<int32>
    nz_position_ids           list<int32>    0, 1, 2, ... in each conversation
    nz_shifted_label_ids      list<int32>    the next token, where it is trained on; meaningless elsewhere
    nz_shifted_loss_weights   list<float32>  weight of the next token; 0 at the end of each conversation

The metadata of the schema name the model type, and with it the prompt format.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from data_pipeline.conversation import TokenizedConversation
from data_pipeline.errors import RowError, UserError
from data_pipeline.read.chunks import TokenizedChunk
from data_pipeline.read.columns import open_parquet
from data_pipeline.read.file_kinds import file_form
from data_pipeline.read.sources import source_files
from data_pipeline.settings.sources import SourceSettings
from data_pipeline.weight import LARGEST_WEIGHT

_SCALARS: Mapping[str, pa.DataType] = {"total_length": pa.int32(), "num_seqs": pa.float32()}
_LISTS: Mapping[str, pa.DataType] = {
    "seqlens": pa.int32(),
    "nz_input_ids": pa.int32(),
    "nz_position_ids": pa.int32(),
    "nz_shifted_label_ids": pa.int32(),
    "nz_shifted_loss_weights": pa.float32(),
}
TEMPLATE_OF_MODEL_TYPE: Mapping[str, str] = {
    "openchat_v3.2": "openchat_3.2",
    "openchat_v3.2_mistral": "openchat_3.5",
    "openchat_3.6": "openchat_3.6",
}
_ROWS_PER_BATCH = 512  # OpenChat writes a whole file as one row group
_EPOCH_FILE = re.compile(r"(.*)\.\d+\.parquet")
_SUM_TOLERANCE = 1e-4  # relative; the sum is stored as float32


def is_tokenized(file: Path) -> bool:
    """Whether a file has this layout, whatever it was made for; False for one that cannot be read."""
    try:
        if file_form(file).kind != "parquet":
            return False
        return set(open_parquet(file).schema_arrow.names) >= {*_SCALARS, *_LISTS}
    except (OSError, UserError):
        return False


def tokenized_files(source: SourceSettings, template: str, *, where: str) -> list[Path]:
    """The files of a source. Raises UserError where one has another layout, or was made for another prompt format."""
    files = source_files(source, where=where)
    for file in files:
        _check_file(file, template, where=where)
    _refuse_epochs(files, where=where)
    return files


def tokenized_chunks(source: SourceSettings, template: str, *, where: str) -> Iterator[TokenizedChunk]:
    """Cut a source into chunks, in order."""
    for file in tokenized_files(source, template, where=where):
        first_row = 1
        try:
            for batch in open_parquet(file).iter_batches(_ROWS_PER_BATCH, columns=[*_SCALARS, *_LISTS]):
                yield TokenizedChunk(path=str(file), first_row=first_row, batch=batch)
                first_row += batch.num_rows
        except (OSError, ValueError) as error:
            raise UserError(file, f"damaged after row {first_row - 1} ({error})", "get the file again") from None


def read_tokenized(chunk: TokenizedChunk) -> Iterator[tuple[str, TokenizedConversation | RowError]]:
    """Yield (place, conversation) for every conversation of a chunk, and one RowError for a row that contradicts
    itself.

    The shift is undone here, and nowhere else: `loss_weights` are those of the tokens themselves.
    """
    for index in range(chunk.batch.num_rows):
        place = f"{chunk.path}:row {chunk.first_row + index}"
        try:
            conversations = _unpack({name: chunk.batch.column(name)[index] for name in (*_SCALARS, *_LISTS)})
        except RowError as error:
            yield place, error
            continue
        for number, conversation in enumerate(conversations, 1):
            yield (place if len(conversations) == 1 else f"{place}.{number}"), conversation


def _check_file(file: Path, template: str, *, where: str) -> None:
    if file_form(file).kind != "parquet":
        raise UserError(
            where,
            f"{file}: format `openchat_tokenized` is a Parquet file",
            "for OpenChat's .jsonl use `openchat`",
        )
    schema = open_parquet(file).schema_arrow
    expected = {**_SCALARS, **{name: pa.list_(kind) for name, kind in _LISTS.items()}}
    for name, kind in expected.items():
        found = schema.field(name).type if name in schema.names else pa.null()
        is_list = pa.types.is_list(kind) and pa.types.is_list(found)
        if found != kind and not (is_list and found.value_type == kind.value_type):  # the name of the items may differ
            problem = f"column `{name}` is {'missing' if found == pa.null() else f'{found}, not {kind}'}"
            raise UserError(file, f"{problem}: OpenChat's generate_dataset did not write this file")
    model_type = _model_type(file, schema.metadata or {})
    made_for = TEMPLATE_OF_MODEL_TYPE.get(model_type)
    if made_for != template:
        fitting = f"that is template `{made_for}`" if made_for else f"known: {', '.join(TEMPLATE_OF_MODEL_TYPE)}"
        raise UserError(
            file,
            f"was tokenized for model type `{model_type}` ({fitting}), but model.template is `{template}`",
            "prepare from the .jsonl (format `openchat`), or use the template of the file",
        )


def _model_type(file: Path, metadata: Mapping[bytes, bytes]) -> str:
    try:
        return str(json.loads(metadata[b"metadata_json"])["model_type"])
    except (KeyError, TypeError, ValueError):
        raise UserError(
            file,
            "its schema names no model type (metadata_json), so its prompt format is unknown",
            "prepare from the .jsonl",
        ) from None


def _refuse_epochs(files: list[Path], *, where: str) -> None:
    """generate_dataset writes the conversations once for every epoch: PREFIX.0.parquet, PREFIX.1.parquet, ..."""
    seen: dict[str, Path] = {}
    for file in files:
        match = _EPOCH_FILE.fullmatch(str(file))
        if match and (other := seen.setdefault(match[1], file)) != file:
            raise UserError(
                where,
                f"{other.name} and {file.name} are two epochs of one dataset",
                "name one of them (`train.epochs` repeats it), or make each its own source if they hold different "
                "conversations",
            )


def _unpack(row: Mapping[str, Any]) -> list[TokenizedConversation]:
    lists = {name: _values(row[name], name) for name in _LISTS}
    lengths, ids, weights = lists["seqlens"], lists["nz_input_ids"], lists["nz_shifted_loss_weights"]
    sizes = {name: len(values) for name, values in lists.items() if name != "seqlens"}
    sizes |= {"total_length": row["total_length"].as_py(), "sum of seqlens": int(lengths.sum())}
    if len(set(sizes.values())) != 1 or not len(ids) or lengths.min() < 1:
        raise RowError(
            "damaged_row", f"lengths differ or are 0: {', '.join(f'{name} {size}' for name, size in sizes.items())}"
        )
    is_bad = ~(np.isfinite(weights) & (weights >= 0) & (weights <= LARGEST_WEIGHT))
    if is_bad.any():
        at = int(np.argmax(is_bad))
        raise RowError(
            "invalid_weight", f"weight {at} is {weights[at]}, which is not a number from 0 to {LARGEST_WEIGHT}"
        )
    total, stored = float(weights.sum(dtype=np.float64)), row["num_seqs"].as_py()
    if stored is None or not math.isclose(total, stored, rel_tol=_SUM_TOLERANCE, abs_tol=_SUM_TOLERANCE):
        raise RowError("damaged_row", f"num_seqs is {stored}, but the weights sum to {total:.6g}")
    ends = np.cumsum(lengths)
    return [
        _unshifted(
            ids[start:end],
            weights[start:end],
            lists["nz_position_ids"][start:end],
            lists["nz_shifted_label_ids"][start:end],
        )
        for start, end in zip(ends - lengths, ends, strict=True)
    ]


def _values(value: Any, name: str) -> np.ndarray:
    values = value.values
    if values is None or values.null_count:
        raise RowError("damaged_row", f"{name} is empty or holds an empty value")
    return np.asarray(values.to_numpy())


def _unshifted(
    ids: np.ndarray, shifted_weights: np.ndarray, positions: np.ndarray, labels: np.ndarray
) -> TokenizedConversation:
    if not np.array_equal(positions, np.arange(len(ids))):
        raise RowError("damaged_row", "nz_position_ids do not count from 0 in each conversation")
    if shifted_weights[-1] != 0:
        raise RowError(
            "damaged_row", "the last weight of a conversation is not 0, so the weights are not shifted by one"
        )
    supervised = np.flatnonzero(shifted_weights)
    if not np.array_equal(labels[supervised], ids[supervised + 1]):
        raise RowError(
            "damaged_row", "nz_shifted_label_ids are not the next tokens, so the labels are not shifted by one"
        )
    weights = np.concatenate((np.zeros(1, np.float32), shifted_weights[:-1])).astype(np.float32)
    return TokenizedConversation(input_ids=ids.astype(np.int32), loss_weights=weights)
