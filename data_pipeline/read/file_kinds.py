"""What a file is, by its content. Its name only decides where the content fits several kinds or none."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from data_pipeline import nesting
from data_pipeline.errors import UserError
from data_pipeline.read.json_documents import is_one_conversation, row_list_keys
from data_pipeline.read.packed import PACKINGS, packing_of
from data_pipeline.read.tables import find_delimiter
from data_pipeline.read.text_files import HEAD_BYTES, LONGEST_LINE, TextForm, form_of, utf8_blocks
from data_pipeline.text_rules import shown

# empty: no byte but white space. lines: JSON, one row a line. document: one JSON list, or objects over several lines.
Kind = Literal["empty", "lines", "document", "table", "parquet", "arrow_file", "arrow_stream"]
_KIND_OF_SUFFIX: dict[str, Kind] = {
    **dict.fromkeys((".jsonl", ".ndjson", ".jsonlines"), "lines"),
    ".json": "document",
    **dict.fromkeys((".csv", ".tsv", ".tab"), "table"),
    ".parquet": "parquet",
    **dict.fromkeys((".arrow", ".feather", ".ipc"), "arrow_file"),
}
_USUAL_DELIMITERS = {".csv": ",", ".tsv": "\t", ".tab": "\t"}
DATA_SUFFIXES = tuple(_KIND_OF_SUFFIX)
PACKED_SUFFIXES = tuple(suffix for packing in PACKINGS for suffix in packing.suffixes)
EXPECTED = "expected JSON lines, JSON, CSV, TSV, Parquet or Arrow, also packed with gzip, zstd, bzip2 or xz"
_DEEP_VALUE = nesting.TOO_DEEP  # for JSON nested too deeply, refused when it is read
_BINARY: tuple[tuple[bytes, Kind], ...] = (
    (b"PAR1", "parquet"),
    (b"ARROW1\0\0", "arrow_file"),
    (b"\xff\xff\xff\xff", "arrow_stream"),
)
_AGAIN = "get the file again, and look at what the server says"
# Beginnings of files that hold no rows: what they are, and what to do.
_NOT_DATA = (
    (b"PK\x03\x04", "a zip archive (or an Excel file)", "unpack it and name its files (save a sheet as CSV)"),
    (b"PK\x05\x06", "an empty zip archive", "get the file again"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it, and name the files in it"),
    (b"Rar!", "a rar archive", "unpack it, and name the files in it"),
    (b"\x04\x22\x4d\x18", "packed with lz4", "unpack it, or pack it with gzip or zstd"),
    (b"\x1f\x9d", "packed with compress (.Z)", "unpack it, or pack it with gzip or zstd"),
    (b"PARE", "an encrypted Parquet file", "write it without encryption"),
    (b"FEA1", "a Feather file of version 1", "write it as Parquet"),
    (b"ORC", "an ORC file", "write it as Parquet"),
    (b"Obj\x01", "an Avro file", "write it as Parquet"),
    (b"SQLite format 3\0", "an SQLite database", "write its table as CSV or Parquet"),
    (b"\x89HDF", "an HDF5 file", "write it as Parquet"),
    (b"\x93NUMPY", "a NumPy file", "write it as Parquet"),
    (b"%PDF", "a PDF file", "write its text as JSON lines"),
    (b"version https://git-lfs.github.com/spec/", "a Git LFS pointer, not the data", "run `git lfs pull` beside it"),
    (b"version https://hawser.github.com/spec/", "a Git LFS pointer, not the data", "run `git lfs pull` beside it"),
    (b"/annex/objects/", "a git-annex pointer, not the data", "run `git annex get` in its folder"),
)
_PAGES = ("<!doctype html", "<html", "<head", "<?xml", "<!--")


@dataclass(frozen=True, kw_only=True)
class FileForm:
    """What a file is. text: of files that hold text. delimiter: between the cells of a table."""

    kind: Kind
    text: TextForm | None = None
    delimiter: str = ""


def suffix_of(path: Path) -> str:
    """The ending of a name in small letters, without those of packings: `.jsonl` of `a.JSONL.gz`."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    while suffixes and suffixes[-1] in PACKED_SUFFIXES:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def bare_name(path: Path) -> str:
    """A name without the endings of packings and of one kind of data: `a.b` of `a.b.jsonl.gz`."""
    while path.suffix.lower() in PACKED_SUFFIXES:
        path = path.with_suffix("")
    return path.stem if path.suffix.lower() in DATA_SUFFIXES else path.name


def file_form(path: Path) -> FileForm:
    """What a file is. Raises UserError for one that holds no rows, which says what it is and what to do."""
    text, head = form_of(path)
    if (binary := next((kind for magic, kind in _BINARY if head.startswith(magic)), None)) is not None:
        if text.packing is not None:
            raise UserError(path, f"a {binary.split('_')[0]} file packed with {text.packing.name}", "unpack it")
        return FileForm(kind=binary)
    _refuse_archives(path, head)
    sample, is_whole = _sample(path, text)
    if not sample.strip():
        return FileForm(kind="empty", text=text)
    named = _KIND_OF_SUFFIX.get(suffix_of(path))
    # a table of one column whose header is in quotes is also JSON lines of texts; its name decides
    is_quoted_table = named == "table" and sample.lstrip()[0] == '"'
    if not is_quoted_table and (kind := _json_kind(sample, is_whole)) is not None:
        return FileForm(kind=kind, text=text)
    _refuse_pages_and_bytes(path, sample)
    if (delimiter := find_delimiter(sample, is_whole, usual=_USUAL_DELIMITERS.get(suffix_of(path)))) is not None:
        return FileForm(kind="table", text=text, delimiter=delimiter)
    if named in ("lines", "document"):
        return FileForm(kind=named, text=text)  # its rows say what is wrong with them
    problem = f"not a readable {'Parquet' if named == 'parquet' else 'Arrow'} file" if named else "unknown kind of file"
    raise UserError(path, f"{problem} (it begins with {shown(sample[:40])})", EXPECTED)


def _refuse_archives(path: Path, head: bytes) -> None:
    for magic, what, remedy in _NOT_DATA:
        if head.startswith(magic):
            raise UserError(path, f"is {what}", remedy)
    if head[257:262] == b"ustar":
        raise UserError(path, "is a tar archive", "unpack it, and name the files in it")
    if packing_of(head) is not None:  # of the unpacked content
        raise UserError(path, "is packed twice", "unpack it once")


def _refuse_pages_and_bytes(path: Path, sample: str) -> None:
    if sample.lstrip()[:16].lower().startswith(_PAGES):
        raise UserError(path, "is an HTML or XML page, most likely an error message instead of the data", _AGAIN)
    if "\0" in sample:
        raise UserError(
            path, f"is a binary file of an unknown kind ({sample.index(chr(0)):,} bytes before a zero)", EXPECTED
        )


def _sample(path: Path, text: TextForm) -> tuple[str, bool]:
    """The beginning of a text with at least one whole line, and whether that is all of it."""
    blocks: list[bytes] = []
    size, has_text, has_line, is_whole = 0, False, False, True
    for block in utf8_blocks(path, text, HEAD_BYTES):
        if (has_line and size >= HEAD_BYTES) or size > LONGEST_LINE:
            is_whole = False
            break
        blocks.append(block)
        size += len(block)
        has_line = has_line or b"\n" in (block if has_text else block.lstrip())
        has_text = has_text or not block.isspace()
    return b"".join(blocks).decode("utf-8", errors="replace"), is_whole


# ---- JSON ----


def _json_kind(sample: str, is_whole: bool) -> Kind | None:
    """Whether a text is JSON lines or a document; None where it does not begin like JSON."""
    start = sample.lstrip()
    first, _, rest = start.partition("\n")
    has_more = not is_whole or bool(rest.strip())
    if start[0] == '"':
        return "lines" if _parsed(first) is not None else None
    if start[0] == "[":
        return _kind_of_lists(first, has_more)
    if start[0] != "{":
        return None
    row = _parsed(first)
    if row is not None:
        return "document" if not has_more and row_list_keys(row) else "lines"
    return "document" if _spreads_over_lines(start, first, rest, is_whole) else "lines"


def _kind_of_lists(first: str, has_more: bool) -> Kind:
    """The same for a text that begins with a list: one list of rows, or a list of messages on each line."""
    item = _first_item(first)
    is_row = is_one_conversation(item) or (has_more and item is not None and not isinstance(item, dict))
    return "lines" if is_row and (not has_more or _parsed(first) is not None) else "document"


def _parsed(text: str) -> Any:
    """The JSON value of a text, None where it is none. _DEEP_VALUE for one that is nested too deeply."""
    try:
        return nesting.loads(text)
    except ValueError:
        is_deep = nesting.is_text_too_deep(text) and nesting.end_of_value(text, 0) is not None
        return _DEEP_VALUE if is_deep else None


def _first_item(text: str) -> Any:
    """The same for the first item of the JSON list that a text begins with."""
    text = text[1:].lstrip()
    try:
        item = json.JSONDecoder().raw_decode(text)[0]
    except (ValueError, RecursionError):
        return _DEEP_VALUE if nesting.is_text_too_deep(text) else None
    return _DEEP_VALUE if nesting.is_value_too_deep(item) else item


def _spreads_over_lines(start: str, first: str, rest: str, is_whole: bool) -> bool:
    """Whether the first line begins an object that continues; otherwise it is a damaged row of its own."""
    if first.strip() == "{":
        return True
    if any(line.startswith("{") and _parsed(line) for line in rest.split("\n", 20)[:20]):
        return False
    if nesting.is_text_too_deep(start):
        return nesting.end_of_value(start, 0) is not None
    try:
        json.JSONDecoder().raw_decode(start)
    except json.JSONDecodeError as error:
        is_cut = error.pos >= len(start.rstrip()) or error.msg.startswith("Unterminated string")
        return is_cut and (bool(rest.strip()) or not is_whole)
    return True
