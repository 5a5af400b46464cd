"""Where raw rows come from: files, folders, patterns and datasets as chunks of rows.

A source is cut into chunks without reading it whole; a chunk is small, can be sent to another process, and is read
there. Every row keeps its place (`file:line`), so that a person can find it again. What a file is, its content says
(`file_kinds.py`); which files a source names, `found_files.py`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from data_pipeline.errors import Problem, UserError
from data_pipeline.file_hashes import hash_files
from data_pipeline.read import columns
from data_pipeline.read.chunks import ArrowChunk, Chunk, ChunkSizes, LinesChunk, ParquetChunk, RowsChunk, TextChunk
from data_pipeline.read.file_kinds import FileForm, file_form
from data_pipeline.read.found_files import FoundFiles, alike_names, find_files, same_files
from data_pipeline.read.json_documents import document_rows, parse_line
from data_pipeline.read.saved_datasets import dataset_rows, load_dataset, saved_folder
from data_pipeline.read.tables import table_rows
from data_pipeline.read.text_files import LONGEST_LINE, TextForm, lines_of, read_text, too_long
from data_pipeline.settings.sources import SourceSettings


def source_files(source: SourceSettings, *, where: str) -> list[Path]:
    """The files of a local source, sorted by name. Raises UserError where there is none or one cannot be read."""
    return list(find_files(source, where=where).files)


def is_dataset(source: SourceSettings) -> bool:
    """Whether the source is read through Hugging Face `datasets`: a Hub id or a `save_to_disk` folder."""
    return source.is_on_hub or saved_folder(source) is not None


def fingerprint(source: SourceSettings, *, where: str, progress: Callable[[int], None] = lambda num_bytes: None) -> str:
    """sha256 over what the source holds now, so that changed input is noticed whatever its time stamp says.

    Files that have not been touched since they were last hashed on this host are not read again (file_hashes.py).
    progress: called with the bytes read since the last call.
    """
    digest = hashlib.sha256()
    if is_dataset(source):
        digest.update(load_dataset(source, where=where)._fingerprint.encode())
        return digest.hexdigest()
    files = source_files(source, where=where)
    for file, found in hash_files(files, group=Path(source.path), progress=progress).files.items():
        digest.update(file.name.encode() + b"\0")
        digest.update(found.sha256.encode())
    return digest.hexdigest()


def check_sources(sources: Sequence[SourceSettings], *, where: str = "data.sources") -> list[Problem]:
    """Look at every file of all sources before the first row is read. Returns what a person should know: what is left
    out, empty files, files that are read twice.

    Raises UserError for a source without files or rows and for the first file that is not data.
    """
    notes: list[Problem] = []
    groups: list[tuple[str, Sequence[Path]]] = []
    for number, source in enumerate(sources):
        if not is_dataset(source):
            found = find_files(source, where=f"{where}.{number}")
            notes += _notes(source, found, where=f"{where}.{number}")
            groups.append((f"{where}.{number}", found.files))
    return notes + same_files(groups) + alike_names(groups)


def _notes(source: SourceSettings, found: FoundFiles, *, where: str) -> list[Problem]:
    notes = [] if found.note is None else [Problem(place=where, problem=f"{source.path}: {found.note}")]
    empty = [file for file in found.files if _form(file, where=where).kind == "empty"]
    if len(empty) == len(found.files):
        state = "is empty" if found.is_named else "every file is empty"
        raise UserError(where, f"{source.path}: {state}", "fill it, or remove the source")
    return notes + [Problem(place=where, problem=f"{file} is empty") for file in empty]


def _form(file: Path, *, where: str) -> FileForm:
    try:
        return file_form(file)
    except UserError as error:
        raise UserError(where, f"{error.place}: {error.problem}", error.remedy) from None


def chunks(source: SourceSettings, *, where: str, sizes: ChunkSizes | None = None) -> Iterator[Chunk]:
    """Cut a source into chunks, in order. All columns are read: one that no format knows has to be named."""
    sizes = sizes or ChunkSizes()
    if is_dataset(source):
        yield from _batched(dataset_rows(source, where=where), sizes.num_rows)
        return
    found = find_files(source, where=where)
    for file in found.files:
        yield from _file_chunks(file, sizes, split=found.split_inside)


def _file_chunks(file: Path, sizes: ChunkSizes, *, split: str | None) -> Iterator[Chunk]:
    form = file_form(file)
    if form.kind == "parquet":
        yield from columns.parquet_chunks(file)
    elif form.kind in ("arrow_file", "arrow_stream"):
        yield from columns.arrow_chunks(file, sizes.num_rows, is_stream=form.kind == "arrow_stream")
    elif form.kind != "empty":
        yield from _text_chunks(file, form, sizes, split=split)


def _text_chunks(file: Path, form: FileForm, sizes: ChunkSizes, *, split: str | None) -> Iterator[Chunk]:
    text = form.text
    assert text is not None, "known for every kind of text"
    if form.kind == "document":
        yield from _batched(document_rows(read_text(file, text), file, split=split), sizes.num_rows)
    elif form.kind == "table":
        yield from _batched(table_rows(file, text, form.delimiter), sizes.num_rows)
    elif text.is_plain:
        yield from _lines_chunks(file, text, sizes.lines_bytes)
    else:
        for lines, first_line in lines_of(file, text, sizes.lines_bytes):
            yield TextChunk(path=str(file), lines=lines, first_line=first_line)


def _lines_chunks(file: Path, form: TextForm, num_bytes: int) -> Iterator[LinesChunk]:
    start, line = form.num_mark_bytes, 1
    with file.open("rb") as stream:
        stream.seek(start)
        while block := stream.read(num_bytes):
            end = stream.readline(LONGEST_LINE)  # up to the end of the line that the block cuts
            if len(end) == LONGEST_LINE:
                raise too_long(file, line + block.count(b"\n"))
            block += end
            yield LinesChunk(path=str(file), start=start, end=start + len(block), first_line=line)
            start += len(block)
            line += block.count(b"\n")


def _batched(rows: Iterator[tuple[str, Any]], num_rows: int) -> Iterator[RowsChunk]:
    batch = []
    for row in rows:
        batch.append(row)
        if len(batch) == num_rows:
            yield RowsChunk(rows=batch)
            batch = []
    if batch:
        yield RowsChunk(rows=batch)


def read_chunk(chunk: Chunk) -> Iterator[tuple[str, Any]]:
    """Yield (place, row) for every row of a chunk; a row that cannot be parsed comes as a RowError in its place."""
    for place, row in _undecoded(chunk):
        yield place, parse_line(row) if isinstance(row, bytes) else row


def rows_at(chunk: Chunk, positions: Sequence[int]) -> Iterator[tuple[str, Any]]:
    """The rows at these positions of a chunk (from 0, rising), as `read_chunk` yields them. Other lines of a file are
    not decoded.
    """
    wanted = frozenset(positions)
    for number, (place, row) in enumerate(islice(_undecoded(chunk), max(wanted, default=-1) + 1)):
        if number in wanted:
            yield place, parse_line(row) if isinstance(row, bytes) else row


def _undecoded(chunk: Chunk) -> Iterator[tuple[str, Any]]:
    """As `read_chunk`, with lines as bytes."""
    if isinstance(chunk, RowsChunk):
        yield from chunk.rows
    elif isinstance(chunk, ParquetChunk):
        yield from columns.parquet_rows(chunk)
    elif isinstance(chunk, ArrowChunk):
        yield from columns.arrow_rows(chunk)
    else:
        for number, line in enumerate(_block(chunk).split(b"\n"), chunk.first_line):
            if line.strip():
                yield f"{chunk.path}:{number}", line


def _block(chunk: LinesChunk | TextChunk) -> bytes:
    if isinstance(chunk, TextChunk):
        return chunk.lines
    with open(chunk.path, "rb") as stream:
        stream.seek(chunk.start)
        return stream.read(chunk.end - chunk.start)


def count_rows(chunk: Chunk) -> int:
    """How many rows a chunk has, without decoding them."""
    if isinstance(chunk, RowsChunk):
        return len(chunk.rows)
    if isinstance(chunk, ArrowChunk):
        return int(chunk.batch.num_rows)
    if isinstance(chunk, ParquetChunk):
        return columns.count_parquet_rows(chunk)
    return sum(1 for line in _block(chunk).split(b"\n") if line.strip())
