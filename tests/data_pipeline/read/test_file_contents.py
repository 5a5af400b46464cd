"""What a file is, by its content: every encoding, packing and layout of JSON and tables gives the rows that were
written, whatever the file is called; everything else is named for what it is.
"""

from __future__ import annotations

import bz2
import csv
import datetime
import gzip
import io
import json
import lzma
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as parquet
import pytest

from data_pipeline.errors import RowError, UserError
from data_pipeline.read import packed, text_files
from data_pipeline.read.chunks import ChunkSizes, TextChunk
from data_pipeline.read.conversations import BadRow, parse_rows
from data_pipeline.read.file_kinds import file_form
from data_pipeline.read.sources import check_sources, chunks, count_rows, read_chunk
from data_pipeline.settings.sources import SourceSettings
from tests.support.rows import conversations

ROWS = [*conversations(6), {"messages": [{"role": "user", "content": "Grüße \u2028 日本 🙂"}]}]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
PRETTY = json.dumps(ROWS, indent=1, ensure_ascii=False)
WRAPPED = {"version": "0.1", "count": 6, "data": ROWS}


def settings(path: Path | str, **more: Any) -> SourceSettings:
    return SourceSettings.model_validate({"path": str(path), "format": "messages", "class": "x", **more})


def read(path: Path, *, sizes: ChunkSizes | None = None, **more: Any) -> list[tuple[str, Any]]:
    """All rows with their places; the chunks went through pickle, as to a worker."""
    parts = [pickle.loads(pickle.dumps(part)) for part in chunks(settings(path, **more), where="s", sizes=sizes)]
    rows = [row for part in parts for row in read_chunk(part)]
    assert sum(map(count_rows, parts)) == len(rows)
    return rows


def rows_of(path: Path, **more: Any) -> list[Any]:
    return [row for _, row in read(path, **more)]


def zstd(data: bytes) -> bytes:
    return bytes(pa.Codec("zstd").compress(data, asbytes=True))


def as_table(rows: list[list[str]], delimiter: str) -> bytes:
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter, lineterminator="\r\n").writerows(rows)
    return text.getvalue().encode()


# ---- everything that holds the same rows ----

ENCODINGS: dict[str, bytes] = {
    "utf8": LINES.encode(),
    "utf8_mark": LINES.encode("utf-8-sig"),
    "utf16_le_mark": b"\xff\xfe" + LINES.encode("utf-16-le"),
    "utf16_be_mark": b"\xfe\xff" + LINES.encode("utf-16-be"),
    "utf16_le": LINES.encode("utf-16-le"),
    "utf16_be": LINES.encode("utf-16-be"),
    "utf32_le_mark": b"\xff\xfe\0\0" + LINES.encode("utf-32-le"),
    "utf32_be_mark": b"\0\0\xfe\xff" + LINES.encode("utf-32-be"),
    "utf32_le": LINES.encode("utf-32-le"),
    "utf32_be": LINES.encode("utf-32-be"),
    "crlf": LINES.replace("\n", "\r\n").encode(),
    "cr_only": LINES.replace("\n", "\r").encode(),
    "no_last_newline": LINES.rstrip("\n").encode(),
    "blank_lines": ("\n \n" + LINES.replace("\n", "\n\n")).encode(),
    "joined_files_with_marks": b"".join(b"\xef\xbb\xbf" + line + b"\n" for line in LINES.encode().split(b"\n")[:-1]),
}
LAYOUTS: dict[str, bytes] = {
    "list_on_one_line": json.dumps(ROWS).encode(),
    "pretty_list": PRETTY.encode(),
    "list_with_a_row_a_line": ("[\n" + ",\n".join(map(json.dumps, ROWS)) + "\n]").encode(),
    "list_with_mark": PRETTY.encode("utf-8-sig"),
    "list_in_utf16": PRETTY.encode("utf-16"),
    "wrapped": json.dumps(WRAPPED).encode(),
    "wrapped_and_pretty": json.dumps(WRAPPED, indent=2).encode(),
    "wrapped_in_one_key": json.dumps({"rows": ROWS}).encode(),
    "pretty_objects_in_a_row": "\n".join(json.dumps(row, indent=2) for row in ROWS).encode(),
}
PACKINGS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "gzip_of_two_parts": lambda data: gzip.compress(data[:100]) + gzip.compress(data[100:]),
    "bzip2": bz2.compress,
    "bzip2_of_two_parts": lambda data: bz2.compress(data[:100]) + bz2.compress(data[100:]),
    "xz": lzma.compress,
    "zstd": zstd,
    "zstd_of_two_frames": lambda data: zstd(data[:100]) + zstd(data[100:]),
    "zstd_after_a_frame_to_skip": lambda data: b"\x50\x2a\x4d\x18\x03\0\0\0abc" + zstd(data),
}
NAMES = ("rows.jsonl", "rows.json", "rows.JSONL", "rows.ndjson", "rows.txt", "rows")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", [*ENCODINGS, *LAYOUTS])
def test_the_content_decides_and_not_the_name(kind: str, name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes({**ENCODINGS, **LAYOUTS}[kind])
    assert rows_of(tmp_path / name) == ROWS


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("kind", ["utf8", "utf8_mark", "utf16_le_mark", "list_on_one_line", "wrapped"])
def test_packed_files_hold_the_same_rows_under_any_name(kind: str, packing: str, tmp_path: Path) -> None:
    data = PACKINGS[packing]({**ENCODINGS, **LAYOUTS}[kind])
    for name in ("rows.jsonl.gz", "rows.json", "rows"):
        (tmp_path / name).write_bytes(data)
        assert rows_of(tmp_path / name) == ROWS


@pytest.mark.parametrize("lines_bytes", [1, 50, 1 << 20])
@pytest.mark.parametrize("kind", ["utf8", "utf16_le_mark", "utf16_be", "crlf", "blank_lines"])
def test_line_numbers_are_those_of_the_unpacked_text(kind: str, lines_bytes: int, tmp_path: Path) -> None:
    path = tmp_path / "rows.gz"
    path.write_bytes(gzip.compress(ENCODINGS[kind]))
    first, step = (3, 2) if kind == "blank_lines" else (1, 1)
    expected = [(f"{path}:{first + step * number}", row) for number, row in enumerate(ROWS)]
    sizes = ChunkSizes(lines_bytes=lines_bytes)
    assert read(path, sizes=sizes) == expected
    assert (len(list(chunks(settings(path), where="s", sizes=sizes))) > 1) == (lines_bytes <= 50)


def test_a_packed_file_comes_in_chunks_while_it_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first chunk is there before the file has been read: its end may even be damaged."""
    path = tmp_path / "rows.jsonl.gz"
    line = json.dumps({"text": "x" * 1000}).encode() + b"\n"
    path.write_bytes(gzip.compress(line * 3000, 0)[:-5000])
    parts = chunks(settings(path), where="s", sizes=ChunkSizes(lines_bytes=10_000))
    first = next(parts)
    assert isinstance(first, TextChunk)
    assert 5_000 < len(first.lines) < 20_000
    with pytest.raises(UserError, match=r"rows\.jsonl\.gz: damaged gzip file, after 3,0\d\d,\d\d\d unpacked bytes"):
        list(parts)


# ---- damage and bombs ----


@pytest.mark.parametrize("packing", ["gzip", "bzip2", "xz", "zstd"])
def test_a_packed_file_that_is_cut_off_is_an_error_and_never_fewer_rows(packing: str, tmp_path: Path) -> None:
    whole = PACKINGS[packing](LINES.encode())
    path = tmp_path / "rows"
    for keep in (12, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:keep])
        with pytest.raises(UserError, match=f"rows: damaged {packing} file"):
            rows_of(path)


@pytest.mark.parametrize("packing", ["gzip", "bzip2", "xz"])
def test_a_packed_file_with_another_byte_is_an_error(packing: str, tmp_path: Path) -> None:
    whole = bytearray(PACKINGS[packing](LINES.encode()))
    whole[len(whole) // 2] ^= 0x55
    (tmp_path / "rows").write_bytes(whole)
    with pytest.raises(UserError, match=f"damaged {packing} file"):
        rows_of(tmp_path / "rows")


@pytest.mark.parametrize("packing", ["gzip", "bzip2", "xz", "zstd"])
def test_a_bomb_stops_at_the_limit(packing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "ALWAYS_BYTES", 1 << 18)
    (tmp_path / "bomb").write_bytes(PACKINGS[packing](LINES.encode() + b"\n" * (1 << 20)))
    with pytest.raises(UserError, match=r"bomb: unpacks to more than \d{3},\d{3} bytes, 200 times its size"):
        rows_of(tmp_path / "bomb")
    monkeypatch.setattr(packed, "ALWAYS_BYTES", 4 << 20)  # the control
    assert rows_of(tmp_path / "bomb") == ROWS


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_a_line_without_end_is_an_error(
    pack: Callable[[bytes], bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (text_files, __import__("data_pipeline.read.sources", fromlist=["sources"])):
        monkeypatch.setattr(module, "LONGEST_LINE", 5_000)
    (tmp_path / "rows.jsonl").write_bytes(pack(b'{"a": 1}\n{"text": "' + b"x" * 100_000 + b'"}\n'))
    with pytest.raises(UserError, match=r"rows\.jsonl: line \d is longer than 5,000 bytes"):
        rows_of(tmp_path / "rows.jsonl", sizes=ChunkSizes(lines_bytes=100))


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "shift-jis"])
def test_another_encoding_is_named_with_byte_and_place(encoding: str, tmp_path: Path) -> None:
    text = {"shift-jis": "日本"}.get(encoding, "Grüße")
    row = json.dumps({"text": text}, ensure_ascii=False)
    data = ('{"text": "a"}\n' + row + "\n").encode(encoding)
    bad = next(number for number, byte in enumerate(data) if byte > 127)
    (tmp_path / "rows.jsonl").write_bytes(data)
    [good, (place, error)] = read(tmp_path / "rows.jsonl")
    assert good[1] == {"text": "a"}
    assert place == f"{tmp_path}/rows.jsonl:2"
    assert isinstance(error, RowError)
    assert f"byte {bad - 14} ({data[bad]:#04x}) is not valid UTF-8; save the file as UTF-8" == str(error)
    for name, content in (
        ("rows.json", b"[" + data.rstrip().replace(b"\n", b",\n") + b"]"),
        ("a.csv", b"a,b\n" + data),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=rf"{name}: byte \d+ \({data[bad]:#04x}, line \d\) is not valid UTF-8"):
            rows_of(tmp_path / name)


def test_utf16_that_is_damaged_is_named_with_its_byte(tmp_path: Path) -> None:
    data = bytearray(b"\xff\xfe" + LINES.encode("utf-16-le"))
    data[200:202] = b"\x00\xd8"  # half of a surrogate pair
    (tmp_path / "rows.jsonl").write_bytes(data)
    with pytest.raises(UserError, match=r"rows\.jsonl: byte 200 is not valid UTF-16-LE"):
        rows_of(tmp_path / "rows.jsonl")


# ---- one row, several lists ----


@pytest.mark.parametrize("indent", [None, 2])
def test_an_object_that_is_a_row_is_not_unwrapped(indent: int | None, tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    for row in (
        {"id": 1, "messages": messages},
        {"conversations": [{"from": "human", "value": "Hi"}]},
        {"conversation": [{"input": "Hi", "output": "Ho"}]},
        {"conversation": [{"input": "Hi", "output": "Ho", "tags": ["a"]}]},
        {"instruction": "Hi", "output": "Ho", "history": []},
        {"prompt": "Hi", "ranked": [{"text": "Ho", "rank": 1}, {"text": "No", "rank": 2}]},
        {"id": "1", "completions": [{"response": "Ho"}]},
        messages,
    ):
        (tmp_path / "rows.json").write_text(json.dumps(row, indent=indent))
        assert rows_of(tmp_path / "rows.json") == [row]
    (tmp_path / "rows.json").write_text(json.dumps({"conversations": [{"messages": messages}] * 2}, indent=indent))
    assert rows_of(tmp_path / "rows.json") == [{"messages": messages}] * 2, "the control"


def test_bare_lists_one_a_line(tmp_path: Path) -> None:
    row = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    (tmp_path / "rows.jsonl").write_text(f"{json.dumps(row)}\n{json.dumps(row)}\n")
    assert rows_of(tmp_path / "rows.jsonl") == [row, row]
    (tmp_path / "rows.jsonl").write_text(json.dumps([row, row]))
    assert rows_of(tmp_path / "rows.jsonl") == [row, row], "a list of such lists"
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(json.dumps(row))}\n" for row in ROWS))
    assert rows_of(tmp_path / "rows.jsonl") == [json.dumps(row) for row in ROWS], "rows as text"


def test_several_lists_under_keys_are_named_or_chosen_by_split(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text(json.dumps({"train": ROWS, "test": ROWS[:1]}))
    with pytest.raises(UserError, match=r"rows\.json: holds several lists of rows \('train', 'test'\); name one"):
        rows_of(tmp_path / "rows.json")
    assert rows_of(tmp_path / "rows.json", split="test") == ROWS[:1]
    with pytest.raises(UserError, match=r"has no split 'dev'; keys with rows: 'train', 'test'"):
        rows_of(tmp_path / "rows.json", split="dev")


def test_a_damaged_first_line_is_one_bad_row(tmp_path: Path) -> None:
    for first in ('{"messages": [', '{"a": "b', '{"a": 1,}', "not JSON", '{"a": 1} {"b": 2}'):
        (tmp_path / "rows.jsonl").write_text(f"{first}\n{LINES}")
        found = rows_of(tmp_path / "rows.jsonl")
        assert isinstance(found[0], RowError)
        assert found[0].reason == "invalid_json"
        assert found[1:] == ROWS


def test_a_long_first_line_is_read_to_its_end_before_the_layout_is_decided(tmp_path: Path) -> None:
    long = {"messages": [{"role": "user", "content": "x" * 200_000}]}
    for rows in ([long, *ROWS], [long]):
        for text in ("".join(f"{json.dumps(row)}\n" for row in rows), json.dumps(rows), json.dumps({"data": rows})):
            (tmp_path / "rows").write_text(text)
            assert rows_of(tmp_path / "rows") == rows


# ---- tables ----

TABLE = [
    ["instruction", "input", "output"],
    ["Hi", "", "Ho"],
    ["Two\nlines, and ; | \t", 'a "quote"', "x" * 200_000],
    ["3", "007", "1.0"],
]


@pytest.mark.parametrize("delimiter", [",", "\t", ";", "|"])
@pytest.mark.parametrize("name", ["rows.csv", "rows.tsv", "rows.txt", "rows.csv.gz"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_tables(delimiter: str, name: str, encoding: str, tmp_path: Path) -> None:
    data = as_table(TABLE, delimiter).decode().encode(encoding)
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    found = read(tmp_path / name)
    assert [row for _, row in found] == [dict(zip(TABLE[0], row, strict=True)) for row in TABLE[1:]]
    assert [place.rpartition(":")[2] for place, _ in found] == ["2", "3", "5"]


def test_tables_of_one_column_and_with_numbered_rows(tmp_path: Path) -> None:
    (tmp_path / "one.csv").write_text('"text"\n"Hi, you"\nHo\n')
    assert rows_of(tmp_path / "one.csv") == [{"text": "Hi, you"}, {"text": "Ho"}]
    (tmp_path / "pandas.csv").write_text(",question,answer\n0,Hi,Ho\n1,a,b\n")
    assert rows_of(tmp_path / "pandas.csv") == [{"question": "Hi", "answer": "Ho"}, {"question": "a", "answer": "b"}]
    (tmp_path / "pandas.csv").write_text(",question\nHi,Ho\n0,a\n")
    bad, good = rows_of(tmp_path / "pandas.csv")
    assert (bad.reason, good) == ("wrong_columns", {"question": "a"})


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_the_note_of_excel_is_no_row(delimiter: str, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_bytes(
        f"sep={delimiter}\r\n".encode() + as_table([["a", "b"], ["c; d", ""]], delimiter)
    )
    assert read(tmp_path / "rows.csv") == [(f"{tmp_path}/rows.csv:3", {"a": "c; d", "b": ""})]


def test_quotes_after_a_space_are_a_bad_row(tmp_path: Path) -> None:
    """They would be a part of the text. Without spaces in the header, a text may begin like that."""
    (tmp_path / "rows.csv").write_text('a, b\n1, "x y"\n2,  z\n')
    bad, good = rows_of(tmp_path / "rows.csv")
    assert (bad.reason, str(bad)[:40]) == ("wrong_columns", "cell 2 has a space before its quote, whi")
    assert good == {"a": "2", "b": "  z"}
    (tmp_path / "rows.csv").write_text('a,b\n1," ""x"""\n')
    assert rows_of(tmp_path / "rows.csv") == [{"a": "1", "b": ' "x"'}]


def test_a_damaged_tsv_is_no_csv(tmp_path: Path) -> None:
    (tmp_path / "rows.tsv").write_text('a\tb\n"Hi" he said\tHo\n')
    with pytest.raises(UserError, match="damaged table at line 2 \\('\t' expected"):
        rows_of(tmp_path / "rows.tsv")


def test_a_row_with_too_few_or_many_cells_is_a_bad_row(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("a,b\n1,2\n3\n\n4,5,6\n7,8\n")
    found = read(tmp_path / "rows.csv")
    assert [row for _, row in found if isinstance(row, dict)] == [{"a": "1", "b": "2"}, {"a": "7", "b": "8"}]
    bad = {place.rpartition(":")[2]: str(row) for place, row in found if isinstance(row, RowError)}
    assert bad == {
        "3": "1 cells for 2 columns; quote cells with delimiters",
        "5": "3 cells for 2 columns; quote cells with delimiters",
    }


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("a,b,a\n1,2,3\n", "two columns are called `a`"),
        ("a,,b\n1,2,3\n", "column 2 has no name"),
        ('a,b\n1,"2\n3,4\n', r"damaged table at line 2 \(unexpected end of data\)"),
        ('a,b\n1,"2" 3\n', "damaged table at line 2"),
    ],
)
def test_damaged_tables(content: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text(content)
    with pytest.raises(UserError, match=rf"rows\.csv: {says}"):
        rows_of(tmp_path / "rows.csv")


def test_prose_is_no_table(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("Hello, world.\nThis is a text, with commas, and more.\n")
    with pytest.raises(UserError, match=r"notes\.txt: unknown kind of file \(it begins with 'Hello, world"):
        rows_of(tmp_path / "notes.txt")


# ---- Arrow and Parquet ----


def write_arrow_stream(path: Path, table: pa.Table) -> None:
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=3)


def write_arrow_file(path: Path, table: pa.Table) -> None:
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=3)


COLUMNAR: dict[str, Callable[[Path, pa.Table], object]] = {
    "stream": write_arrow_stream,
    "file": write_arrow_file,
    "feather": lambda path, table: feather.write_feather(table, path),
    "feather_packed": lambda path, table: feather.write_feather(table, path, compression="zstd"),
    "parquet": lambda path, table: parquet.write_table(table, path, row_group_size=4),
}


@pytest.mark.parametrize("name", ["rows.arrow", "rows.parquet", "rows.bin", "a::b [1] ü.arrow"])
@pytest.mark.parametrize("kind", COLUMNAR)
def test_columnar_files_under_any_name(kind: str, name: str, tmp_path: Path) -> None:
    COLUMNAR[kind](tmp_path / name, pa.Table.from_pylist(ROWS))
    found = read(tmp_path / name, sizes=ChunkSizes(num_rows=2))
    assert found == [(f"{tmp_path / name}:row {number}", row) for number, row in enumerate(ROWS, 1)]


def unreadable_columns() -> dict[str, pa.Array]:
    """Values that Arrow holds and Python does not."""
    return {
        "far": pa.array([253402300800000000 + number for number in range(3)], pa.timestamp("us")),
        "before": pa.array([-800000] * 3, pa.int32()).cast(pa.date32()),
        "nowhere": pa.array([0] * 3, pa.timestamp("us", tz="America/Nowhere")),
        "long": pa.array([2**63 - 1] * 3, pa.duration("s")),
        "half": pa.array([-800000, 0, None], pa.int32()).cast(pa.date32()),
    }


@pytest.mark.parametrize("kind", [*COLUMNAR, "saved"])
def test_a_value_that_python_cannot_hold_costs_no_row(kind: str, tmp_path: Path) -> None:
    columns = {"text": pa.array(["a", "b", "c"]), **unreadable_columns()}
    if kind == "saved":
        del columns["nowhere"], columns["long"]  # `datasets` refuses these itself
        write_arrow_stream(tmp_path / "x.arrow", pa.table(columns))
        datasets.Dataset.from_file(str(tmp_path / "x.arrow")).save_to_disk(str(tmp_path / "rows"))
    else:
        COLUMNAR[kind](tmp_path / "rows", pa.table(columns))
    found = rows_of(tmp_path / "rows")
    assert [row["text"] for row in found] == ["a", "b", "c"]
    for name in columns.keys() - {"text", "half"}:
        for row in found:
            assert isinstance(row[name], RowError), name
            assert row[name].reason == "unreadable_value"
    assert [isinstance(row["half"], RowError) for row in found] == [True, False, False]
    assert [row["half"] for row in found[1:]] == [datetime.date(1970, 1, 1), None]


@pytest.mark.parametrize("kind", COLUMNAR)
def test_maps_are_objects(kind: str, tmp_path: Path) -> None:
    pairs = [[("role", "user"), ("content", "Hi")], [("role", "user"), ("role", "assistant")]]
    kinds = pa.struct([("turns", pa.list_(pa.map_(pa.string(), pa.string()))), ("n", pa.int64())])
    COLUMNAR[kind](tmp_path / "rows", pa.table({"talk": pa.array([{"turns": pairs, "n": 1}, None], kinds)}))
    found, nothing = rows_of(tmp_path / "rows")
    first, twice = found["talk"]["turns"]
    assert (first, twice.reason, nothing["talk"]) == ({"role": "user", "content": "Hi"}, "duplicate_key", None)


@pytest.mark.parametrize("kind", [*COLUMNAR, "saved"])
def test_nulls_that_a_column_fills_in_are_refused_where_the_model_sees_them(kind: str, tmp_path: Path) -> None:
    """`{"x": 1}` beside `{"y": 2}` comes back as `{"x": 1, "y": None}`: another text, in tools and arguments."""

    def row(key: str, **more: Any) -> dict[str, Any]:
        call = {"function": {"name": "f", "arguments": {key: 1}}}
        return {"messages": [{"role": "assistant", "content": None, "tool_calls": [call]}], **more}

    def problems(rows: list[dict[str, Any]]) -> list[str]:
        if kind == "saved":
            datasets.Dataset.from_list(rows).save_to_disk(str(tmp_path / "rows"))
        else:
            COLUMNAR[kind](tmp_path / "rows", pa.Table.from_pylist(rows))
        items = parse_rows(read(tmp_path / "rows"), source=settings("a"))
        return [item.message.partition(":")[0] for item in items if isinstance(item, BadRow)]

    where = "messages[0].tool_calls.arguments"
    assert problems([row("x"), row("y")]) == [f"{where}.y", f"{where}.x"]
    tools = [{"name": "f", "parameters": {"x": {"type": "int"}}}, {"name": "g", "parameters": {}}]
    assert problems([row("x", tools=tools)] * 2) == ["tools[1].parameters.x"] * 2
    assert problems([row("x", tools=tools[:1]), row("x", tools=None)]) == [], "the control"
    assert problems([row("x", tools=json.dumps(tools))] * 2) == [], "as text"


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array(["x"]), pa.array(["y"])], names=["a", "a"])
    for kind in ("stream", "file", "parquet"):
        COLUMNAR[kind](tmp_path / kind, table)
        with pytest.raises(UserError, match=f"{kind}: two columns are called `a`"):
            rows_of(tmp_path / kind)


@pytest.mark.parametrize("kind", ["stream", "file"])
def test_an_arrow_file_that_is_cut_off_is_an_error(kind: str, tmp_path: Path) -> None:
    COLUMNAR[kind](tmp_path / "rows", pa.Table.from_pylist(ROWS))
    data = (tmp_path / "rows").read_bytes()
    for keep in (len(data) // 3, len(data) - 20):
        (tmp_path / "rows").write_bytes(data[:keep])
        with pytest.raises(UserError, match="rows: not a readable Arrow file"):
            rows_of(tmp_path / "rows")


# ---- what is no data ----


def a_tar(folder: Path) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        info = tarfile.TarInfo("rows.jsonl")
        info.size = len(LINES.encode())
        archive.addfile(info, io.BytesIO(LINES.encode()))
    return buffer.getvalue()


def a_zip(folder: Path) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("rows.jsonl", LINES)
    return buffer.getvalue()


NOT_DATA: dict[str, tuple[bytes, str]] = {
    "lfs": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n",
        "is a Git LFS pointer, not the data; run `git lfs pull`",
    ),
    "annex": (b"/annex/objects/SHA256E-s12--00.jsonl\n", "is a git-annex pointer, not the data; run `git annex get`"),
    "page": (b"\n<!DOCTYPE html><html>Not found</html>", "is an HTML or XML page, most likely an error message"),
    "xml": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "is an HTML or XML page"),
    "zip": (a_zip(Path()), "is a zip archive (or an Excel file); unpack it"),
    "tar": (a_tar(Path()), "is a tar archive; unpack it"),
    "tar.gz": (gzip.compress(a_tar(Path())), "is a tar archive; unpack it"),
    "packed twice": (gzip.compress(bz2.compress(LINES.encode())), "is packed twice; unpack it once"),
    "parquet.gz": (gzip.compress(b"PAR1" + bytes(100)), "a parquet file packed with gzip; unpack it"),
    "lz4": (b"\x04\x22\x4d\x18" + bytes(50), "is packed with lz4; unpack it"),
    "pickle": (pickle.dumps(ROWS), "is a binary file of an unknown kind"),
    "sqlite": (b"SQLite format 3\0" + bytes(100), "is an SQLite database"),
    "words": (b"Entry not found", "unknown kind of file (it begins with 'Entry not found')"),
}


@pytest.mark.parametrize("name", ["rows.parquet", "rows.csv.gz", "rows.arrow", "rows"])
@pytest.mark.parametrize("kind", NOT_DATA)
def test_what_is_no_data_is_named_before_anything_is_read(kind: str, name: str, tmp_path: Path) -> None:
    content, says = NOT_DATA[kind]
    (tmp_path / name).write_bytes(content)
    if kind == "words" and name != "rows":
        says = {"rows.csv.gz": "", "rows.parquet": "not a readable Parquet"}.get(name, "not a readable Arrow")
    if not says:
        assert rows_of(tmp_path / name) == [], "a header without rows"
        return
    with pytest.raises(UserError) as caught:
        check_sources([settings(tmp_path / name)])
    assert str(caught.value).startswith(f"data.sources.0: {tmp_path / name}: ")
    assert says in str(caught.value)


def test_json_lines_that_begin_like_something_else_are_rows(tmp_path: Path) -> None:
    """The control of the test above."""
    rows = [{"text": value} for value in ("<html>", "version https://git-lfs.github.com/spec/v1", "PK\x03\x04", "\0")]
    (tmp_path / "rows").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert rows_of(tmp_path / "rows") == rows


def test_the_form_of_a_file_is_the_same_wherever_the_sample_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for size in (1, 7, 300):
        monkeypatch.setattr("data_pipeline.read.file_kinds.HEAD_BYTES", size)
        for kind, content in {**ENCODINGS, **LAYOUTS}.items():
            (tmp_path / "rows").write_bytes(content)
            expected = "document" if kind in LAYOUTS or kind == "cr_only" else "lines"
            assert file_form(tmp_path / "rows").kind == expected, (kind, size)
