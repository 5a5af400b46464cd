"""Rows of Parquet and Arrow files: column by column, so that one value that Python cannot hold costs no row."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet

from data_pipeline.errors import RowError, UserError
from data_pipeline.read.chunks import ArrowChunk, ParquetChunk
from data_pipeline.read.columnar_rows import ColumnarRow

_ROWS_AT_ONCE = 1024
_CANNOT_READ = (OSError, ValueError, EOFError)  # pyarrow's own errors are among them


def batch_rows(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    """The rows of a batch as plain Python values.

    A value that Python cannot hold (a date before year 1, a time zone that the machine does not know) is a RowError in
    its place, for whoever needs it.
    """
    try:
        columns = [column.to_pylist() for column in batch.columns]
    except Exception:
        columns = [_values(column) for column in batch.columns]
    columns = [
        [_plain(value, column.type) for value in values] if _has_map(column.type) else values
        for values, column in zip(columns, batch.columns, strict=True)
    ]
    names = batch.schema.names
    return [ColumnarRow(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]


def _has_map(kind: pa.DataType) -> bool:
    return pa.types.is_map(kind) or any(_has_map(kind.field(number).type) for number in range(kind.num_fields))


def _plain(value: Any, kind: pa.DataType) -> Any:
    """A value with its maps, which come as lists of pairs, as objects."""
    if value is None or isinstance(value, RowError):
        return value
    if pa.types.is_map(kind):
        found = {key: _plain(item, kind.item_type) for key, item in value}
        twice = RowError("duplicate_key", "a map has the same key twice; keep one")
        return found if len(found) == len(value) else twice
    if pa.types.is_struct(kind):
        return {field.name: _plain(value[field.name], field.type) for field in kind}
    if isinstance(value, list):
        return [_plain(item, kind.value_type) for item in value]
    return value


def _values(column: pa.Array) -> list[Any]:
    try:
        return column.to_pylist()  # type: ignore[no-any-return]
    except Exception:
        return [_value(scalar) for scalar in column]


def _value(scalar: pa.Scalar) -> Any:
    try:
        return scalar.as_py()
    except Exception as error:  # whatever datetime, the time zone database or pandas say
        return RowError("unreadable_value", f"a value of type {scalar.type} cannot be read ({error})")


# ---- Parquet ----


def open_parquet(file: Path | str) -> parquet.ParquetFile:
    """A Parquet file. Raises UserError for one that cannot be read, and for two columns of one name."""
    try:
        opened = parquet.ParquetFile(pa.OSFile(str(file)))  # a name with `::` or `:` is a name of a file here
        names = opened.schema_arrow.names
    except _CANNOT_READ as error:
        raise UserError(file, f"not a readable Parquet file ({error})", "write it again") from None
    _check_names(file, names)
    return opened


def _check_names(file: Path | str, names: list[str]) -> None:
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(file, f"two columns are called `{twice}`", "give each its own name")


def parquet_chunks(file: Path) -> Iterator[ParquetChunk]:
    """A chunk for each row group."""
    opened = open_parquet(file)
    first_row = 1
    for group in range(opened.metadata.num_row_groups):
        yield ParquetChunk(path=str(file), row_group=group, first_row=first_row)
        first_row += opened.metadata.row_group(group).num_rows


def parquet_rows(chunk: ParquetChunk) -> Iterator[tuple[str, Any]]:
    """The rows of a row group, few at a time."""
    number = chunk.first_row
    batches = open_parquet(chunk.path).iter_batches(_ROWS_AT_ONCE, row_groups=[chunk.row_group])
    while True:
        try:
            batch = next(batches, None)
        except _CANNOT_READ as error:
            problem = f"row group {chunk.row_group} is damaged ({error})"
            raise UserError(chunk.path, problem, "get the file again") from None
        if batch is None:
            return
        for row in batch_rows(batch):
            yield f"{chunk.path}:row {number}", row
            number += 1


def count_parquet_rows(chunk: ParquetChunk) -> int:
    """Rows of a row group, by the file's metadata."""
    return int(open_parquet(chunk.path).metadata.row_group(chunk.row_group).num_rows)


# ---- Arrow ----


def arrow_chunks(file: Path, num_rows: int, *, is_stream: bool) -> Iterator[ArrowChunk]:
    """Chunks of at most `num_rows` rows of an Arrow file, in either of its two layouts."""
    first_row = 1
    try:
        with pa.memory_map(str(file)) as source:
            for batch in _batches(source, is_stream=is_stream, file=file):
                for start in range(0, batch.num_rows, num_rows):
                    part = batch.slice(start, num_rows)
                    yield ArrowChunk(path=str(file), first_row=first_row, batch=part)
                    first_row += part.num_rows
    except _CANNOT_READ as error:
        raise UserError(file, f"not a readable Arrow file ({error})", "write it again") from None


def _batches(source: Any, *, is_stream: bool, file: Path) -> Iterator[pa.RecordBatch]:
    if is_stream:
        with pa.ipc.open_stream(source) as reader:
            _check_names(file, reader.schema.names)
            yield from reader
        return
    with pa.ipc.open_file(source) as reader:
        _check_names(file, reader.schema.names)
        for number in range(reader.num_record_batches):
            yield reader.get_batch(number)


def arrow_rows(chunk: ArrowChunk) -> Iterator[tuple[str, Any]]:
    """The rows of a chunk."""
    for number, row in enumerate(batch_rows(chunk.batch), chunk.first_row):
        yield f"{chunk.path}:row {number}", row
