"""Where rows come from and how they are laid out: every container gives the same rows, every format its
Conversation.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from data_pipeline.conversation import Conversation, Message
from data_pipeline.errors import RowError, UserError
from data_pipeline.prepare.prepare import prepare
from data_pipeline.read import sources
from data_pipeline.read.chunks import ChunkSizes
from data_pipeline.read.rows import parse_row
from data_pipeline.read.sources import chunks, read_chunk
from data_pipeline.settings.sources import SourceSettings
from tests.support.data import make_job, prepare_rows, source
from tests.support.rows import conversations, write_jsonl

ROWS = conversations(23)


def write_json(path: Path, rows: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    return path


def write_parquet(path: Path, rows: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.Table.from_pylist(rows), path, row_group_size=5)
    return path


# ---- every container holds the same rows ----


def as_jsonl(folder: Path) -> dict[str, Any]:
    return source(write_jsonl(folder / "rows.jsonl", ROWS))


def as_folder(folder: Path) -> dict[str, Any]:
    """Files of every kind in the order of their names, one of them deeper, and one that is not data."""
    write_jsonl(folder / "raw" / "a.jsonl", ROWS[:4])
    write_json(folder / "raw" / "b.json", ROWS[4:9])
    write_parquet(folder / "raw" / "c" / "rows.parquet", ROWS[9:17])
    write_jsonl(folder / "raw" / "d.jsonl", ROWS[17:])
    (folder / "raw" / "README.md").write_text("not data")
    return source(folder / "raw")


def as_dataset_with_a_format(folder: Path) -> dict[str, Any]:
    """Somebody used the dataset with numpy before saving it; `datasets` remembers that."""
    datasets.Dataset.from_list(ROWS).with_format("numpy").save_to_disk(str(folder / "saved"))
    return source(folder / "saved")


def as_two_sources(folder: Path) -> list[dict[str, Any]]:
    first, second = write_jsonl(folder / "z.jsonl", ROWS[:11]), write_jsonl(folder / "a.jsonl", ROWS[11:])
    return [source(first), source(second)]


CONTAINERS = [as_folder, as_dataset_with_a_format, as_two_sources]


@pytest.fixture(scope="module")
def expected_rows(
    tmp_path_factory: pytest.TempPathFactory, small_tokenizer_dir: Path
) -> list[tuple[list[int], list[float]]]:
    """Ids and weights of the rows as they come from one JSONL file."""
    folder = tmp_path_factory.mktemp("jsonl")
    _, rows = prepare_rows(make_job(folder / "prepared", [as_jsonl(folder)], small_tokenizer_dir))
    return [row[1:] for row in rows]


@pytest.mark.parametrize("container", CONTAINERS)
def test_every_container_gives_the_same_prepared_rows(
    container: Any, tmp_path: Path, small_tokenizer_dir: Path, expected_rows: list[tuple[list[int], list[float]]]
) -> None:
    described = container(tmp_path)
    job = make_job(
        tmp_path / "prepared", described if isinstance(described, list) else [described], small_tokenizer_dir
    )
    manifest, rows = prepare_rows(job)
    assert manifest.ledger.read == manifest.ledger.kept == len(ROWS)
    assert len({row.id for row in rows}) == len(ROWS), "rows without an id are known by their place"
    assert [row[1:] for row in rows] == expected_rows


def test_prepared_rows_stand_in_the_order_of_the_source(
    expected_rows: list[tuple[list[int], list[float]]], tmp_path: Path, small_tokenizer_dir: Path
) -> None:
    """A control for the test above: the rows differ from each other, and another order is noticed."""
    path = write_jsonl(tmp_path / "rows.jsonl", ROWS[::-1])
    _, rows = prepare_rows(make_job(tmp_path / "prepared", [source(path)], small_tokenizer_dir))
    assert [row[1:] for row in rows] == expected_rows[::-1] != expected_rows


def test_rows_of_a_saved_dataset_give_their_number(tmp_path: Path) -> None:
    path = tmp_path / "saved"
    datasets.Dataset.from_list(ROWS).save_to_disk(str(path))
    assert places(path) == [f"{path}:row {number}" for number in range(1, 24)]


def test_places_in_a_json_array_are_row_numbers_or_line_numbers_but_not_both(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text("[\n" + ",\n".join(map(json.dumps, ROWS)) + "\n]\n", encoding="utf-8")
    by_row = [f"{path}:row {number}" for number in range(1, 24)]
    by_line = [f"{path}:{number}" for number in range(2, 25)]
    assert places(path) in (by_row, by_line)


def test_long_array_and_dataset_come_in_several_chunks(tmp_path: Path) -> None:
    settings = settings_of(source(write_json(tmp_path / "rows.json", ROWS)))
    chunks = list(sources.chunks(settings, where="data.sources.0", sizes=ChunkSizes(num_rows=4)))
    assert len(chunks) == 6
    assert [row for chunk in chunks for _, row in sources.read_chunk(chunk)] == ROWS


# ---- line numbers ----


def settings_of(described: dict[str, Any]) -> SourceSettings:
    return SourceSettings.model_validate(described)


def places(path: Path) -> list[str]:
    chunks = sources.chunks(settings_of(source(path)), where="data.sources.0")
    return [place for chunk in chunks for place, _ in sources.read_chunk(chunk)]


@pytest.mark.parametrize("end", [b"", b"\n", b"\n\n", b"\n \n\r\n"], ids=["no_newline", "newline", "blank", "blanks"])
@pytest.mark.parametrize("chunk_bytes", [1, 2, 7, 30, 100, 1 << 20])
def test_line_numbers_are_right_across_chunk_borders(chunk_bytes: int, end: bytes, tmp_path: Path) -> None:
    """Every row knows its line, with blank lines, long lines and line separators inside text."""
    texts = [f"{number}" + " \u2028é" * (number * 7 % 50) for number in range(60)]
    lines, expected = [], []
    for number, text in enumerate(texts):
        lines += [b""] * (number % 3) + [json.dumps({"text": text}, ensure_ascii=False).encode()]
        expected.append((f"{tmp_path / 'rows.jsonl'}:{len(lines)}", {"text": text}))
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n".join(lines) + end)
    sizes = ChunkSizes(lines_bytes=chunk_bytes)
    chunks = list(sources.chunks(settings_of(source(path)), where="data.sources.0", sizes=sizes))
    assert [row for chunk in chunks for row in sources.read_chunk(chunk)] == expected
    assert (len(chunks) == 1) == (chunk_bytes == 1 << 20), "the small sizes make many chunks"


@pytest.mark.parametrize("chunk_bytes", [1, 500, 1 << 20])
def test_ledger_names_the_right_line_in_any_chunk(chunk_bytes: int, tmp_path: Path, small_tokenizer_dir: Path) -> None:
    bad = {7: "no_assistant_message", 12: "empty_message", 20: "invalid_json"}
    lines = [json.dumps(row) for row in ROWS]
    lines[6] = json.dumps({"messages": [{"role": "user", "content": "Hi"}]})
    lines[11] = json.dumps({"messages": [{"role": "user", "content": ""}]})
    lines[19] = "{"
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    job = make_job(tmp_path / "prepared", [source(path)], small_tokenizer_dir, bad_rows="drop")
    manifest, rows = prepare_rows(job, sizes=ChunkSizes(lines_bytes=chunk_bytes))
    found = {reason: [example.split(": ")[0] for example in kept] for reason, kept in manifest.ledger.examples.items()}
    assert found == {reason: [f"{path}:{number}"] for number, reason in bad.items()}
    assert [row.id for row in rows] == [f"{path}:{number}" for number in range(1, 24) if number not in bad]


# ---- sources that cannot be read ----


def test_missing_paths_and_unknown_files_are_user_errors_that_name_source_and_path(
    tmp_path: Path, small_tokenizer_dir: Path
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "notes.txt").write_text("x")
    (tmp_path / "rows.zip").write_bytes(b"PK\x03\x04")
    (tmp_path / "rows.jsonl.gz").write_bytes(b"\x1f\x8b")
    (tmp_path / "rows").write_text("Hello there")
    write_jsonl(tmp_path / "good.jsonl", ROWS)
    problems = {
        "missing.jsonl": "no such file or folder",
        "missing/": "no such file or folder",
        "empty": "holds no data file;",
        "texts": "holds no data file (left out notes.txt (not data));",
        "none-*.jsonl": "no file matches",
        "texts/*": "unknown kind of file (it begins with 'x'); expected JSON lines, JSON, CSV,",
        "rows.zip": "is a zip archive",
        "rows.jsonl.gz": "damaged gzip file",
        "rows": "unknown kind of file (it begins with 'Hello there'); expected JSON lines, JSON, CSV,",
    }
    for name, problem in problems.items():
        described = [source(tmp_path / "good.jsonl"), source(f"{tmp_path}/{name}")]
        with pytest.raises(UserError) as caught:
            prepare(make_job(tmp_path / "prepared", described, small_tokenizer_dir), num_workers=1)
        assert problem in str(caught.value), name
        assert str(caught.value).startswith(f"data.sources.1: {tmp_path}/"), name
        assert not (tmp_path / "prepared").exists()


def test_hub_dataset_without_a_split_is_refused_before_anything_is_loaded(
    tmp_path: Path, small_tokenizer_dir: Path
) -> None:
    job = make_job(tmp_path / "prepared", [source("hf://org/name")], small_tokenizer_dir)
    with pytest.raises(UserError, match=r"data\.sources\.0: hf://org/name: name the split"):
        prepare(job, num_workers=1)


@pytest.mark.parametrize("keep", [1, 3, 200, -10])
def test_broken_parquet_file_is_a_user_error(keep: int, tmp_path: Path, small_tokenizer_dir: Path) -> None:
    path = write_parquet(tmp_path / "rows.parquet", ROWS)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"rows\.parquet: not a readable Parquet file"):
        prepare(make_job(tmp_path / "prepared", [source(path)], small_tokenizer_dir), num_workers=1)


def test_parquet_file_with_a_broken_page_is_a_user_error(tmp_path: Path, small_tokenizer_dir: Path) -> None:
    """The footer is whole, the data is not: it comes to light when a row group is read."""
    path = write_parquet(tmp_path / "rows.parquet", ROWS)
    content = bytearray(path.read_bytes())
    end = parquet.ParquetFile(path).metadata.row_group(0).column(0).total_compressed_size
    content[4:end] = bytes(byte ^ 0xFF for byte in content[4:end])
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"rows\.parquet"):
        prepare(make_job(tmp_path / "prepared", [source(path)], small_tokenizer_dir), num_workers=1)


# ---- formats ----


def said(*contents: str, weights: tuple[float | None, ...] = ()) -> tuple[Message, ...]:
    """Messages of user and assistant in turn."""
    given = weights or (None,) * len(contents)
    return tuple(
        Message(role="assistant" if number % 2 else "user", content=content, weight=weight)
        for number, (content, weight) in enumerate(zip(contents, given, strict=True))
    )


def conversation(messages: tuple[Message, ...], **changes: Any) -> Conversation:
    return Conversation(**{"id": "file:1", "place": "file:1", "messages": messages, **changes})


ITEMS = [{"role": "user", "content": "Hi", "weight": 0.0}, {"role": "assistant", "content": "Ho", "weight": 0.1}]
TURNS = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]
CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
OWN = {"class": None}
FORMATS: dict[str, tuple[str, dict[str, Any], dict[str, Any], Conversation]] = {
    "openchat_as_it_is": (
        "openchat",
        OWN,
        {"items": ITEMS, "condition": "GPT3", "system": ""},
        conversation(said("Hi", "Ho", weights=(0.0, 0.1)), condition="GPT3"),
    ),
    "openchat_with_system_and_id": (
        "openchat",
        OWN,
        {"id": 5, "items": ITEMS, "condition": "", "system": "Be brief."},
        conversation(said("Hi", "Ho", weights=(0.0, 0.1)), condition="", system="Be brief.", id="5"),
    ),
    "openchat_in_a_class_keeps_only_the_mask": (
        "openchat",
        {"class": "expert"},
        {"items": [*ITEMS, *ITEMS[:1], {**ITEMS[1], "weight": 0}], "condition": "GPT3"},
        conversation(said("Hi", "Ho", "Hi", "Ho", weights=(0.0, None, 0.0, 0.0))),
    ),
    "openchat_in_a_class_needs_neither_condition_nor_weight": (
        "openchat",
        {"class": "expert"},
        {"items": CHAT},
        conversation(said("Hi", "Ho")),
    ),
    "sharegpt": ("sharegpt", {}, {"id": "abc_0", "conversations": TURNS}, conversation(said("Hi", "Ho"), id="abc_0")),
    "sharegpt_other_names_and_weight": (
        "sharegpt",
        {},
        {"conversations": [{"from": "user", "value": "Hi"}, {"from": "chatgpt", "value": "Ho", "weight": 0.5}]},
        conversation(said("Hi", "Ho", weights=(None, 0.5))),
    ),
    "sharegpt_system_turn": (
        "sharegpt",
        {},
        {"conversations": [{"from": "system", "value": "Be brief."}, *TURNS]},
        conversation(said("Hi", "Ho"), system="Be brief."),
    ),
    "sharegpt_system_field": (
        "sharegpt",
        {},
        {"conversations": TURNS, "system": "Be brief."},
        conversation(said("Hi", "Ho"), system="Be brief."),
    ),
    "messages": ("messages", {}, {"messages": CHAT}, conversation(said("Hi", "Ho"))),
    "messages_white_space_is_kept": (
        "messages",
        {},
        {"messages": [{"role": "user", "content": " Hi\n"}, {"role": "assistant", "content": "\tHo "}]},
        conversation(said(" Hi\n", "\tHo ")),
    ),
    "messages_text_parts": (
        "messages",
        {},
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]},
                CHAT[1],
            ]
        },
        conversation(said("Hi", "Ho")),
    ),
    "messages_developer_role": (
        "messages",
        {},
        {"messages": [{"role": "developer", "content": "Be brief."}, *CHAT]},
        conversation(said("Hi", "Ho"), system="Be brief."),
    ),
    "messages_system_in_parts": (
        "messages",
        {},
        {"messages": [{"role": "system", "content": [{"type": "text", "text": "Be brief."}]}, *CHAT]},
        conversation(said("Hi", "Ho"), system="Be brief."),
    ),
    "messages_weight": (
        "messages",
        {},
        {"messages": [CHAT[0], {**CHAT[1], "weight": 2}]},
        conversation(said("Hi", "Ho", weights=(None, 2.0))),
    ),
    "messages_two_users_in_a_row": (
        "messages",
        {},
        {"messages": [CHAT[0], *CHAT]},
        conversation((Message(role="user", content="Hi"), *said("Hi", "Ho"))),
    ),
    "class_field": (
        "messages",
        {"class_field": "quality"},
        {"messages": CHAT, "quality": "expert"},
        conversation(said("Hi", "Ho"), class_value="expert"),
    ),
    "class_field_deep_and_a_number": (
        "messages",
        {"class_field": "meta.rating.stars"},
        {"messages": CHAT, "meta": {"rating": {"stars": 5}}},
        conversation(said("Hi", "Ho"), class_value="5"),
    ),
    "alpaca": ("alpaca", {}, {"instruction": "Hi", "input": "", "output": "Ho"}, conversation(said("Hi", "Ho"))),
    "alpaca_input": (
        "alpaca",
        {},
        {"instruction": "Add.", "input": "1 and 2", "output": "3"},
        conversation(said("Add.\n\n1 and 2", "3")),
    ),
    "alpaca_history_and_system": (
        "alpaca",
        {},
        {"instruction": "And 3?", "output": "6", "history": [["1 and 2?", "3"], ["Right?", "Yes."]], "system": "Add."},
        conversation(said("1 and 2?", "3", "Right?", "Yes.", "And 3?", "6"), system="Add."),
    ),
    "alpaca_empty_history": (
        "alpaca",
        {},
        {"instruction": "Hi", "output": "Ho", "history": [], "system": None},
        conversation(said("Hi", "Ho")),
    ),
}


@pytest.mark.parametrize("name", FORMATS)
def test_format_gives_the_expected_conversation(name: str) -> None:
    format, more, row, expected = FORMATS[name]
    assert parse_row(row, place="file:1", source=settings_of(source("unused.jsonl", format=format, **more))) == expected


def test_the_same_conversation_in_every_format_gives_the_same_ids(tmp_path: Path, small_tokenizer_dir: Path) -> None:
    turns = [("1 and 2?", "3"), ("And 3?", "6")]
    flat = [turn for pair in turns for turn in zip(("user", "assistant"), pair, strict=True)]
    chat = [{"role": role, "content": text} for role, text in flat]
    rows = {
        "openchat": {"items": chat, "system": "Add."},
        "sharegpt": {
            "conversations": [
                {"from": {"user": "human", "assistant": "gpt"}[role], "value": text} for role, text in flat
            ],
            "system": "Add.",
        },
        "messages": {"messages": [{"role": "system", "content": "Add."}, *chat]},
        "alpaca": {"instruction": turns[1][0], "output": turns[1][1], "history": [list(turns[0])], "system": "Add."},
    }
    described = [
        source(write_jsonl(tmp_path / f"{format}.jsonl", [row]), format=format, **{"class": "expert"})
        for format, row in rows.items()
    ]
    _, prepared = prepare_rows(make_job(tmp_path / "prepared", described, small_tokenizer_dir))
    assert len(prepared) == 4
    assert all(row[1:] == prepared[0][1:] for row in prepared)


def test_rows_may_be_nested_100_levels_deep_and_not_deeper(tmp_path: Path) -> None:
    """Also in a list of rows; 100,000 brackets are the first row that cannot be read there."""
    too_deep = "nested more than 100 levels deep, which no conversation is"
    rows = [{"x": json.loads("[" * levels + "]" * levels)} for levels in (98, 99, 100, 800)]
    texts = [json.dumps(row) for row in rows]
    (tmp_path / "a.jsonl").write_text("\n".join([*texts, "[" * 100_000]) + "\n")
    (tmp_path / "a.json").write_text(f"[{','.join(texts)}]")
    for name, num_bad in (("a.jsonl", 3), ("a.json", 2)):
        source = SourceSettings.model_validate({"path": str(tmp_path / name), "format": "messages", "class": "x"})
        found = [row for chunk in chunks(source, where="x") for _, row in read_chunk(chunk)]
        assert found[:2] == rows[:2]
        assert all(isinstance(row, RowError) for row in found[2:])
        assert [str(row) for row in found[2:]] == [too_deep] * num_bad
    (tmp_path / "a.json").write_text("[" + "[" * 100_000)
    with pytest.raises(UserError, match="cut off or not JSON in row 1"):
        list(chunks(source, where="x"))
