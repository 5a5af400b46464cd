"""Where raw rows come from: the only file that knows files, folders, globs, Parquet and Hugging Face datasets.

A source is cut into chunks without reading it whole; a chunk is small, can be sent to another process, and is read
there. Every row keeps its place (`file:line`), so that a person can find it again.
"""

from __future__ import annotations

import glob
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet

from data_pipeline.errors import RowError, UserError
from data_pipeline.file_hashes import hash_files
from data_pipeline.settings import HUB_PREFIX, SourceSettings
from data_pipeline.text_rules import shown

SUFFIXES = (".jsonl", ".json", ".parquet")
MOST_LEVELS = 100  # of lists and objects inside each other in a row
_PACKED_SUFFIXES = (".gz", ".zst", ".bz2", ".xz", ".zip")


@dataclass(frozen=True, kw_only=True)
class ChunkSizes:
    """How large chunks are: enough to keep a worker busy for a second, and little enough to balance the workers.

    lines_bytes: of a JSONL file. num_rows: of rows that come parsed (`.json` files, datasets).
    """

    lines_bytes: int = 2 << 20
    num_rows: int = 1024


@dataclass(frozen=True, kw_only=True)
class LinesChunk:
    """Bytes `start:end` of a JSONL file; they begin at line `first_line` (1-based) and end at a line's end."""

    path: str
    start: int
    end: int
    first_line: int


@dataclass(frozen=True, kw_only=True)
class ParquetChunk:
    """One row group of a Parquet file; its first row is row `first_row` (1-based) of the file."""

    path: str
    row_group: int
    first_row: int


@dataclass(frozen=True, kw_only=True)
class RowsChunk:
    """Rows that are parsed already: (place, row)."""

    rows: Sequence[tuple[str, Any]]


Chunk = LinesChunk | ParquetChunk | RowsChunk


def source_files(source: SourceSettings, *, where: str) -> list[Path]:
    """The files of a local source, sorted by name. Raises UserError where there is none or one cannot be read."""
    try:
        files = _found_files(source, where=where)
        for file in files:
            file.open("rb").close()
    except OSError as error:
        raise UserError(where, f"{error.filename or source.path}: cannot be read: {error.strerror}") from None
    return files


def _found_files(source: SourceSettings, *, where: str) -> list[Path]:
    path = Path(source.path)
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.suffix in SUFFIXES and p.is_file())
        rule = f"the folder holds no {', '.join(SUFFIXES)} file"
    elif path.is_file():
        files, rule = [path], ""
    elif glob.has_magic(source.path):
        files = sorted(Path(p) for p in glob.glob(source.path, recursive=True) if Path(p).is_file())
        rule = "no file matches the pattern"
    else:
        files, rule = [], "no such file or folder"
    if not files:
        raise UserError(
            where, f"{source.path}: {rule}", f"relative paths start at the current folder ({Path.cwd().name}/)"
        )
    for file in files:
        if file.suffix not in SUFFIXES:
            remedy = "; unpack it first" if file.suffix in _PACKED_SUFFIXES else ""
            raise UserError(where, f"{file}: unknown kind of file", f"expected {', '.join(SUFFIXES)}{remedy}")
    return files


def is_dataset(source: SourceSettings) -> bool:
    """Whether the source is read through Hugging Face `datasets`: a Hub id or a `save_to_disk` folder."""
    folder = Path(source.path)
    saved = (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file()
    return source.is_on_hub or saved


def fingerprint(source: SourceSettings, *, where: str, progress: Callable[[int], None] = lambda num_bytes: None) -> str:
    """sha256 over what the source holds now, so that changed input is noticed whatever its time stamp says.

    Files that have not been touched since they were last hashed on this host are not read again (file_hashes.py).
    progress: called with the bytes read since the last call.
    """
    digest = hashlib.sha256()
    if is_dataset(source):
        digest.update(_load_dataset(source, where=where)._fingerprint.encode())
        return digest.hexdigest()
    files = source_files(source, where=where)
    for file, found in hash_files(files, group=Path(source.path), progress=progress).files.items():
        digest.update(file.name.encode() + b"\0")
        digest.update(found.sha256.encode())
    return digest.hexdigest()


def chunks(source: SourceSettings, *, where: str, sizes: ChunkSizes | None = None) -> Iterator[Chunk]:
    """Cut a source into chunks, in order."""
    sizes = sizes or ChunkSizes()
    if is_dataset(source):
        yield from _batched(_dataset_rows(source, where=where), sizes.num_rows)
        return
    for file in source_files(source, where=where):
        if file.suffix == ".jsonl":
            yield from _lines_chunks(file, sizes.lines_bytes)
        elif file.suffix == ".parquet":
            yield from _parquet_chunks(file)
        else:
            yield from _batched(_json_array_rows(file), sizes.num_rows)


def read_chunk(chunk: Chunk) -> Iterator[tuple[str, Any]]:
    """Yield (place, row) for every row of a chunk; a row that cannot be parsed comes as a RowError in its place."""
    if isinstance(chunk, RowsChunk):
        yield from chunk.rows
    elif isinstance(chunk, ParquetChunk):
        try:
            rows = parquet.ParquetFile(chunk.path).read_row_group(chunk.row_group).to_pylist()
        except (OSError, ValueError) as error:
            raise UserError(
                chunk.path, f"row group {chunk.row_group} is damaged ({error})", "get the file again"
            ) from None
        for number, row in enumerate(rows, chunk.first_row):
            yield f"{chunk.path}:row {number}", row
    else:
        with open(chunk.path, "rb") as stream:
            stream.seek(chunk.start)
            block = stream.read(chunk.end - chunk.start)
        for number, line in enumerate(block.split(b"\n"), chunk.first_line):
            if line.strip():
                yield f"{chunk.path}:{number}", _parse_line(line)


def count_rows(chunk: Chunk) -> int:
    """How many rows a chunk has, without decoding them."""
    if isinstance(chunk, RowsChunk):
        return len(chunk.rows)
    if isinstance(chunk, ParquetChunk):
        return int(parquet.ParquetFile(chunk.path).metadata.row_group(chunk.row_group).num_rows)
    with open(chunk.path, "rb") as stream:
        stream.seek(chunk.start)
        return sum(1 for line in stream.read(chunk.end - chunk.start).split(b"\n") if line.strip())


def _lines_chunks(file: Path, num_bytes: int) -> Iterator[LinesChunk]:
    start, line = 0, 1
    with file.open("rb") as stream:
        while block := stream.read(num_bytes):
            block += stream.readline()  # up to the end of the line that the block cuts
            yield LinesChunk(path=str(file), start=start, end=start + len(block), first_line=line)
            start += len(block)
            line += block.count(b"\n")


def _parquet_chunks(file: Path) -> Iterator[ParquetChunk]:
    try:
        metadata = parquet.ParquetFile(file).metadata
    except (OSError, ValueError) as error:
        raise UserError(file, f"not a readable Parquet file ({error})", "write it again") from None
    first_row = 1
    for group in range(metadata.num_row_groups):
        yield ParquetChunk(path=str(file), row_group=group, first_row=first_row)
        first_row += metadata.row_group(group).num_rows


def _dataset_rows(source: SourceSettings, *, where: str) -> Iterator[tuple[str, Any]]:
    for number, row in enumerate(_load_dataset(source, where=where), 1):
        yield f"{source.path}:row {number}", dict(row)


def _batched(rows: Iterator[tuple[str, Any]], num_rows: int) -> Iterator[RowsChunk]:
    batch = []
    for row in rows:
        batch.append(row)
        if len(batch) == num_rows:
            yield RowsChunk(rows=batch)
            batch = []
    if batch:
        yield RowsChunk(rows=batch)


def _load_dataset(source: SourceSettings, *, where: str) -> Any:
    """The dataset, giving plain Python values whatever format it was saved with."""
    return _find_dataset(source, where=where).with_format(None)


def _find_dataset(source: SourceSettings, *, where: str) -> Any:
    import datasets

    if source.is_on_hub:
        name = source.path.removeprefix(HUB_PREFIX)
        if source.split is None:
            raise UserError(where, f"{source.path}: name the split, for example `split: train`")
        try:
            return datasets.load_dataset(name, split=source.split)
        except Exception as error:
            raise UserError(where, f"{source.path}: cannot be loaded from the Hub: {error}") from None
    loaded = datasets.load_from_disk(source.path)
    if not isinstance(loaded, datasets.DatasetDict):
        return loaded
    if source.split not in loaded:
        raise UserError(where, f"{source.path}: has no split `{source.split}`", f"splits: {', '.join(loaded)}")
    return loaded[source.split]


def _json_array_rows(file: Path) -> Iterator[tuple[str, Any]]:
    """Rows of a JSON file that holds a list of objects, decoded one by one."""
    data = file.read_bytes()
    if data.startswith(b"\xef\xbb\xbf"):
        raise UserError(file, "begins with a byte order mark", "save it as UTF-8 without one")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(file, f"byte {error.start} is not valid UTF-8", "save the file as UTF-8") from None
    decoder = _decoder()
    position = _skip_space(text, 0)
    if position == len(text) or text[position] != "[":
        raise UserError(file, "expected a JSON list of objects", "for one object a line, name the file .jsonl")
    position, number = _skip_space(text, position + 1), 0
    while position < len(text) and text[position] != "]":
        number += 1
        row: Any
        try:
            try:
                row, end = decoder.raw_decode(text, position)
            except RowError as error:  # readable JSON, but not a row
                row, end = error, json.JSONDecoder().raw_decode(text, position)[1]
        except (ValueError, RecursionError) as error:
            problem = f"cut off or not JSON in row {number}: {error}"
            raise UserError(file, problem, f"{number - 1} rows could be read") from None
        row, position = _not_too_deep(row, text[position:end]), end
        yield f"{file}:row {number}", row
        position = _skip_space(text, position)
        if position < len(text) and text[position] == ",":
            position = _skip_space(text, position + 1)
        elif position < len(text) and text[position] != "]":
            raise UserError(file, f"expected `,` or `]` after row {number}")
    if position >= len(text):
        raise UserError(
            file, "the list has no end", f"{number} rows could be read, the rest is missing: get the file again"
        )
    if _skip_space(text, position + 1) != len(text):
        raise UserError(file, f"something follows after the list of {number} rows", "a .json file holds one list")


def _skip_space(text: str, position: int) -> int:
    while position < len(text) and text[position] in " \t\r\n":
        position += 1
    return position


def _parse_line(line: bytes) -> Any:
    """A parsed row, or the RowError that says why there is none."""
    if line.startswith(b"\xef\xbb\xbf"):
        return RowError("byte_order_mark", "begins with a byte order mark; save the file as UTF-8 without one")
    try:
        text = line.decode("utf-8")
        return _not_too_deep(_decoder().decode(text), text)
    except UnicodeDecodeError as error:
        return RowError("invalid_utf8", f"byte {error.start} is not valid UTF-8; save the file as UTF-8")
    except RowError as error:
        return error
    except RecursionError:
        return _too_deep()
    except ValueError as error:
        return RowError("invalid_json", f"not valid JSON: {error}")


def _not_too_deep(row: Any, text: str) -> Any:
    """The row, or a RowError where it is nested so deeply that whatever walks through it could fail. text: its JSON."""
    if text.count("[") + text.count("{") <= MOST_LEVELS:
        return row
    level = [row] if isinstance(row, dict | list) else []
    for _ in range(MOST_LEVELS):
        values = (value for part in level for value in (part.values() if isinstance(part, dict) else part))
        level = [value for value in values if isinstance(value, dict | list)]
    return _too_deep() if level else row


def _too_deep() -> RowError:
    return RowError("invalid_json", f"nested more than {MOST_LEVELS} levels deep, which no conversation is")


def _decoder() -> json.JSONDecoder:
    return json.JSONDecoder(object_pairs_hook=_object_without_duplicates)


def _object_without_duplicates(pairs: list[tuple[str, Any]]) -> Mapping[str, Any]:
    row = dict(pairs)
    if len(row) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise RowError("duplicate_key", f"key {shown(twice)} appears twice in one object; keep one")
    return row
