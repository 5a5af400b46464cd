"""Rows of a table in text: CSV, TSV and their kin. Cells are text; what they mean is for the format to say."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_pipeline.errors import RowError, UserError
from data_pipeline.read.text_files import LONGEST_LINE, TextForm, lines_of, not_utf8

_BLOCK_BYTES = 1 << 20
_SEPARATOR_NOTE = re.compile(r"sep=([,\t;|])\r?\n")  # Excel's first line


def table_rows(path: Path, form: TextForm, delimiter: str) -> Iterator[tuple[str, Any]]:
    """The rows of a table below its header, each with the line on which it begins.

    A first column without a name that counts the rows (as pandas writes it) is left out. Raises UserError for a table
    without usable names of columns and for one that is damaged: after a quote that is not closed, no row is certain.
    """
    csv.field_size_limit(LONGEST_LINE)
    reader = csv.reader(_lines(path, form), delimiter=delimiter, strict=True)
    line, is_spaced = 1, False
    try:
        names: list[str] = []
        for record in reader:
            if not any(record) or (line == 1 and record == ["sep=", ""]):
                pass  # a blank line, or the note of Excel that names the delimiter
            elif not names:
                names = _header(record, path)
                is_spaced = any(name[:1].isspace() for name in record[1:])
            else:
                row = _row(names, record)
                yield f"{path}:{line}", _spaced_quotes(record) or row if is_spaced else row
            line = reader.line_num + 1
    except csv.Error as error:
        problem = f"damaged table at line {line} ({error})"
        raise UserError(path, problem, 'a quote inside a quoted cell is written twice (`""`)') from None


def _lines(path: Path, form: TextForm) -> Iterator[str]:
    for block, _ in lines_of(path, form, _BLOCK_BYTES):
        try:
            text = block.decode("utf-8")
        except UnicodeDecodeError as error:
            raise not_utf8(path, block, error) from None
        yield from text.splitlines(keepends=True) if "\n" not in text else _split(text)


def _split(text: str) -> Iterator[str]:
    """Lines that end with `\\n`, and with nothing else that Python takes for the end of a line."""
    for line in text.split("\n")[:-1]:
        yield line + "\n"
    if last := text.rpartition("\n")[2]:
        yield last


def _header(record: list[str], path: Path) -> list[str]:
    names = [name.strip() for name in record]
    if not all(names[1:]) or not any(names):
        number = next(number for number, name in enumerate(names, 1) if not name)
        raise UserError(path, f"column {number} has no name", "the first line of a table names its columns")
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(path, f"two columns are called `{twice}`", "give each its own name")
    return names


def _row(names: list[str], record: list[str]) -> Any:
    if len(record) != len(names):
        return RowError("wrong_columns", f"{len(record)} cells for {len(names)} columns; quote cells with delimiters")
    row = dict(zip(names, record, strict=True))
    number = row.pop("", "0")
    if not number.isdecimal():
        return RowError("wrong_columns", "the first column has no name, and its cells are not numbers of rows; name it")
    return row


def _spaced_quotes(record: list[str]) -> RowError | None:
    """The error for a cell whose quotes are text because a space is in front of them: `a, "b"`."""
    for number, cell in enumerate(record, 1):
        if cell[:1].isspace() and cell.strip()[:1] == cell.strip()[-1:] == '"':
            problem = f"cell {number} has a space before its quote, which makes both a part of the text"
            return RowError("wrong_columns", f"{problem}; remove the spaces after the delimiters")
    return None


# ---- is it a table? ----


def find_delimiter(sample: str, is_whole: bool, *, usual: str | None) -> str | None:
    """What separates the cells of a table; None where the text is none.

    usual: the delimiter that its name says. Without one it has to be certain: names for at least two columns and as
    many cells in each row.
    """
    is_table = usual is not None
    note = _SEPARATOR_NOTE.match(sample)
    if note is not None:
        return note[1]
    best, most = None, 1
    for delimiter in ",\t;|":
        widths = _widths(sample, is_whole, delimiter)
        header_only = len(widths) < 2 and not is_table
        if header_only or not widths or widths[0] <= most:
            continue
        if len(set(widths)) == 1 or (is_table and widths.count(widths[0]) * 2 > len(widths)):
            best, most = delimiter, widths[0]
    return best or usual


def _widths(sample: str, is_whole: bool, delimiter: str) -> list[int]:
    """Cells of each record of a sample; nothing where it is not a table with such a delimiter."""
    lines = sample.splitlines(keepends=True)
    try:
        records = [record for record in csv.reader(lines, delimiter=delimiter, strict=True) if record]
    except csv.Error:
        records = []
        if not is_whole:  # the last record may be cut inside quotes
            records = _records_before_the_cut(lines, delimiter)
    else:
        records = records if is_whole else records[:-1]
    if not records or len(set(records[0])) != len(records[0]) or not all(map(str.strip, records[0][1:])):
        return []
    return [len(record) for record in records]


def _records_before_the_cut(lines: list[str], delimiter: str) -> list[list[str]]:
    records: list[list[str]] = []
    try:
        for record in csv.reader(lines, delimiter=delimiter, strict=True):
            records.append(record)
    except csv.Error:
        return [record for record in records if record]
    return records
