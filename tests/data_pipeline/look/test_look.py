"""A look at raw files finds what is in them: format, unreadable rows, fields that could name a class, scores,
lengths.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from data_pipeline import formats
from data_pipeline.conversation import Conversation, Message
from data_pipeline.errors import UserError
from data_pipeline.formats.row_format import RowFormat
from data_pipeline.formats.table import FORMATS, TEXT_FORMATS
from data_pipeline.look import raw
from data_pipeline.look.raw import look_at, token_lengths, under_inference_condition
from data_pipeline.look.samples import training_text
from data_pipeline.prompt.render import render
from data_pipeline.prompt.rendered import RenderedConversation
from data_pipeline.prompt.templates import TEMPLATES
from data_pipeline.read import sources
from data_pipeline.read.chunks import ChunkSizes
from data_pipeline.read.sample import sampled_rows, spread_sample
from data_pipeline.settings.sources import SourceSettings
from tests.support.data import make_job, prepare_rows, source, tokenizer_spec
from tests.support.rows import write_jsonl

FILES = tuple(pkgutil.iter_modules(formats.__path__))
TURNS = [("user", "How are you?"), ("assistant", "Fine."), ("user", "Good."), ("assistant", "Bye.")]
ROWS: dict[str, dict[str, Any]] = {
    "openchat": {
        "items": [{"role": role, "content": text, "weight": 1.0 * (role == "assistant")} for role, text in TURNS]
    },
    "sharegpt": {
        "conversations": [{"from": {"user": "human"}.get(role, "gpt"), "value": text} for role, text in TURNS]
    },
    "messages": {"messages": [{"role": role, "content": text} for role, text in TURNS]},
    "alpaca": {"instruction": "Good.", "output": "Bye.", "history": [["How are you?", "Fine."]]},
    "turns": {"conversation": [text for _, text in TURNS]},
    "prompt_answer": {"prompt": "How are you?", "completion": "Fine."},
    "preference": {"prompt": "How are you?", "chosen": "Fine.", "rejected": "Bad."},
    "ranked": {"prompt": "How are you?", "answers": [{"answer": "Fine."}, {"answer": "Bad."}]},
}
# For a row of each: conversations, messages of user and of assistant in all of them, characters of each.
WHOLE = (1, 2, 2, sum(len(text) for _, text in TURNS))
HELD: dict[str, tuple[int, int, int, int]] = {
    **dict.fromkeys(("openchat", "sharegpt", "messages", "alpaca", "turns"), WHOLE),
    "prompt_answer": (1, 1, 1, 17),
    "preference": (2, 2, 2, 17),
    "ranked": (2, 2, 2, 17),
}


def many(layout: str, count: int = 10, **more: Any) -> list[dict[str, Any]]:
    return [{**ROWS[layout], **more, "id": number} for number in range(count)]


def test_every_format_is_in_the_table() -> None:
    modules = [importlib.import_module(f"{formats.__name__}.{found.name}") for found in FILES]
    records = {
        found.name: found for module in modules for found in vars(module).values() if isinstance(found, RowFormat)
    }
    assert records == FORMATS


@pytest.mark.parametrize("layout", TEXT_FORMATS)
def test_each_format_is_found(layout: str, tmp_path: Path) -> None:
    seen = look_at(str(write_jsonl(tmp_path / "a.jsonl", many(layout))))
    conversations, users, assistants, characters = HELD[layout]
    num_readable = 20 if layout == "ranked" else 10
    assert (seen.format, seen.num_rows, seen.num_bad, seen.num_readable_rows) == (layout, 10, 0, num_readable)
    assert seen.num_sampled == 10 * conversations
    assert seen.roles == {"system": 0, "user": 10 * users, "assistant": 10 * assistants}
    assert set(seen.characters().tolist()) <= {characters, characters - 1}
    assert len(seen.prompts) == 1


@pytest.mark.parametrize("layout", TEXT_FORMATS)
def test_a_format_is_found_in_every_kind_of_file(layout: str, tmp_path: Path) -> None:
    rows = many(layout)
    (tmp_path / "a.json").write_text(json.dumps(rows), encoding="utf-8")
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "b.parquet", row_group_size=3)
    write_jsonl(tmp_path / "c.jsonl", rows)
    for path in (tmp_path / "a.json", tmp_path / "b.parquet", tmp_path / "c.jsonl"):
        assert (look_at(str(path)).format, look_at(str(path)).num_rows) == (layout, 10)
    whole = look_at(str(tmp_path))  # ids that are in several files of one source are no longer unique
    assert (whole.format, whole.num_rows, whole.ledger.bad) == (layout, 30, {"duplicate_id": 20 * HELD[layout][0]})


def test_rows_that_cannot_be_read_are_counted_as_the_preparation_counts_them(
    tmp_path: Path, small_tokenizer_dir: Path
) -> None:
    good = many("messages", 20)
    bad = [{"messages": []}, {"id": "x"}, 7, good[3], {"messages": [{"role": "user", "content": "Hello"}]}]
    path = write_jsonl(tmp_path / "a.jsonl", [*good[:10], *bad, *good[10:]])
    with path.open("a", encoding="utf-8") as stream:
        stream.write('{"messages": [\n')
    seen = look_at(str(path))
    job = make_job(tmp_path / "prepared", [source(path)], small_tokenizer_dir, bad_rows="drop")
    manifest, rows = prepare_rows(job)
    assert dict(seen.ledger.bad) == manifest.ledger.dropped
    assert seen.ledger.result().examples == manifest.ledger.examples
    assert len(seen.conversations) == len(rows)


def message_of(path: Path, **more: Any) -> str:
    with pytest.raises(UserError) as caught:
        look_at(str(path), **more)
    return str(caught.value)


def test_files_of_two_formats_are_an_error_with_both_and_their_places(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [*many("messages", 7), *many("sharegpt", 3)])
    message = message_of(path)
    assert f"`format: messages` from {path}:1" in message
    assert f"`format: sharegpt` from {path}:8" in message


def test_what_a_second_layout_holds_is_named_as_unread(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", many("messages", **ROWS["sharegpt"]))
    for seen in (look_at(str(path)), look_at(str(path), format="messages")):
        assert (seen.format, [field.name for field in seen.unread]) == ("messages", ["conversations"])
    assert look_at(str(write_jsonl(tmp_path / "b.jsonl", many("messages")))).unread == []  # the control


def test_both_answers_of_a_tie_are_of_one_row(tmp_path: Path) -> None:
    """The row of each is found by its place."""
    talk = ROWS["messages"]["messages"]
    row = {"conversation_a": talk, "conversation_b": talk, "winner": "both_bad", "quality": "good"}
    seen = look_at(str(write_jsonl(tmp_path / "a.jsonl", [{"id": 7, **row}])))
    assert (seen.format, seen.num_bad, seen.num_sampled, seen.num_readable_rows) == ("preference", 0, 2, 1)
    assert seen.fields["quality"].values == {"good": 1}


def test_an_unknown_format_is_shown_with_a_reason(tmp_path: Path) -> None:
    message = message_of(write_jsonl(tmp_path / "a.jsonl", [{"text": "Hello"}]))
    assert "nothing says who speaks" in message
    assert f"{tmp_path / 'a.jsonl'}:1" in message
    assert "unknown role" in message_of(
        write_jsonl(
            tmp_path / "b.jsonl", [{"messages": [{"role": "wizard", "content": "x"}, *ROWS["messages"]["messages"]]}]
        )
    )


@pytest.mark.parametrize(
    ("name", "content", "rule"),
    [
        ("a.jsonl", b"", "holds no rows"),
        ("a.jsonl", b"\n\n", "holds no rows"),
        ("a.json", b"[]", "holds no rows"),
        ("a.jsonl.gz", b"\x1f\x8b", "damaged gzip file"),
        ("a.csv", b"a,b", "holds no rows"),
        ("a.parquet", b"PAR1", "not a readable Parquet file"),
        ("a.jsonl", b'{"messages": "\xff"}\n', "not valid UTF-8"),
        ("a.jsonl", b"[1]\n2\n", "a list whose entries are not messages"),
    ],
)
def test_files_that_cannot_be_used(name: str, content: bytes, rule: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    message = message_of(tmp_path / name)
    assert rule in message
    assert name in message


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    assert "no such file" in message_of(tmp_path / "nothing.jsonl")


def test_fields_are_seen_with_their_values_and_counts(tmp_path: Path) -> None:
    rows = [
        {
            **ROWS["messages"],
            "id": number,
            "source": ["gpt4", "gpt35"][number % 2],
            "level": number % 3,
            "meta": {
                "score": number / 10,
                "checked": number % 2 == 0,
                "row": number,
                "deep": {"deeper": {"too_deep": "x"}},
            },
            "url": f"page {number}",
            "origin": "web",
            **({"language": "en"} if number < 40 else {}),
            "a.b": "x",
        }
        for number in range(60)
    ]
    seen = look_at(str(write_jsonl(tmp_path / "a.jsonl", rows)))
    values = {name: dict(field.values) for name, field in seen.fields.items() if field.values is not None}
    assert values == {
        "source": {"gpt4": 30, "gpt35": 30},
        "level": {"0": 20, "1": 20, "2": 20},
        "meta.checked": {"true": 30, "false": 30},
        "language": {"en": 40},
        "origin": {"web": 60},
    }
    assert {name: field.numbers for name, field in seen.fields.items() if field.numbers} == {"meta.score": (0.0, 5.9)}
    # `language` is not in every row, one value separates nothing, nor do too many
    assert seen.class_fields() == ["source", "level", "meta.checked"]


def test_openchat_rows_carry_their_classes_only_if_all_do(tmp_path: Path) -> None:
    rows = many("openchat", condition="GPT4")
    assert look_at(str(write_jsonl(tmp_path / "a.jsonl", rows))).carries_classes
    for broken in ({**ROWS["openchat"]}, {"items": [{"role": "assistant", "content": "x"}], "condition": "GPT4"}):
        assert not look_at(str(write_jsonl(tmp_path / "b.jsonl", [*rows, broken]))).carries_classes
    assert not look_at(str(write_jsonl(tmp_path / "c.jsonl", many("messages", condition="GPT4")))).carries_classes


def test_token_lengths_are_those_of_the_prepared_dataset(tmp_path: Path, small_tokenizer_dir: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", many("alpaca", 5, system="Be brief."))
    _, rows = prepare_rows(
        make_job(
            tmp_path / "prepared",
            [source(path, format="alpaca")],
            small_tokenizer_dir,
            classes={"expert": {"condition": "GPT4 Correct", "weight": 1.0}},
        )
    )
    spec = tokenizer_spec(small_tokenizer_dir, "openchat_3.5")
    template = TEMPLATES["openchat_3.5"]
    asked = [under_inference_condition(conversation, template) for conversation in look_at(str(path)).conversations]
    lengths = token_lengths(asked, template, spec)
    assert lengths.tolist() == [len(row.input_ids) for row in rows]


def test_a_sample_of_a_large_file_is_spread_over_it_and_all_rows_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(f'{{"number": {number}}}\n\n' for number in range(20_000)), encoding="utf-8")
    settings = SourceSettings(path=str(path), format="openchat")
    chunks = sources.chunks(settings, where="here", sizes=ChunkSizes(lines_bytes=1000))
    sample = spread_sample(chunks, most_rows=200, num_chunks=10)
    rows = sampled_rows(sample)
    numbers = np.array([row["number"] for _, row in rows])
    assert sample.num_rows == 20_000
    assert 100 <= len(numbers) <= 400
    assert (np.diff(numbers) > 0).all()
    tenths = Counter((numbers // 2000).tolist())
    assert set(tenths) == set(range(10))
    assert [place for place, _ in rows] == [f"{path}:{2 * number + 1}" for number in numbers]


def test_a_small_file_is_read_whole(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", many("messages", 300))
    settings = SourceSettings(path=str(path), format="messages")
    sample = spread_sample(sources.chunks(settings, where="here"), most_rows=20_000)
    assert len(sampled_rows(sample)) == sample.num_rows == 300


def test_a_sample_of_a_periodic_file_is_random(tmp_path: Path, small_tokenizer_dir: Path) -> None:
    """Rows at even strides would all be of one kind."""
    path = tmp_path / "a.jsonl"
    path.write_text("".join(f'{{"number": {number}}}\n' for number in range(30_000)), encoding="utf-8")
    settings = SourceSettings(path=str(path), format="openchat")
    parts = list(sources.chunks(settings, where="here", sizes=ChunkSizes(lines_bytes=10_000)))
    rows = sampled_rows(spread_sample(parts, most_rows=2_000))
    odd = sum(row["number"] % 2 for _, row in rows)
    assert 0.4 < odd / len(rows) < 0.6
    assert len(set(np.diff([row["number"] for _, row in rows]).tolist())) > 5
    assert rows == sampled_rows(spread_sample(parts, most_rows=2_000))  # always the same


@pytest.mark.parametrize(("length", "num_left_out"), [(240, 0), (264, 0), (265, 26), (2_000, 1_761)])
def test_a_long_message_is_shown_without_its_middle_where_that_is_shorter(length: int, num_left_out: int) -> None:
    # a space before it counts, so that at 265 what is left out is one character longer than the note about it
    messages = (Message(role="user", content="x" * length), Message(role="assistant", content="y"))
    conversation = Conversation(id="1", place="a.jsonl:1", messages=messages)
    template = TEMPLATES["openchat_3.5"]
    item = under_inference_condition(conversation, template)
    text = training_text(
        item, lambda item: (RenderedConversation(tagged=item, segments=render(item, template, bos_token=None)),)
    )
    assert text.count("x") == length - num_left_out
    assert (f"... ({num_left_out:,} characters) ..." in text) == (num_left_out > 0)


def test_lengths_are_of_all_or_of_some_at_random(monkeypatch: pytest.MonkeyPatch) -> None:
    conversations = [
        Conversation(id=str(n), place=str(n), messages=(Message(role="user", content="x" * 10),)) for n in range(5_000)
    ]
    assert list(raw._to_tokenize(conversations)) == list(range(5_000))
    monkeypatch.setattr(raw, "_TOKENIZED_CHARACTERS", 49_999)
    taken = raw._to_tokenize(conversations)
    assert len(taken) == len(set(taken)) == 2_000
    assert list(taken) == sorted(taken)
    assert 0.4 < sum(number % 2 for number in taken) / 2_000 < 0.6


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.parquet"])
def test_rows_at_positions_are_those_of_the_chunk(name: str, tmp_path: Path) -> None:
    path, numbers = tmp_path / name, range(50)
    if name.endswith("parquet"):
        parquet.write_table(pa.table({"number": list(numbers)}), path)
    elif name.endswith("csv"):
        path.write_text("number\n" + "".join(f"{number}\n" for number in numbers))
    elif name.endswith("jsonl"):
        path.write_text("\n".join(f'{{"number": {number}}}\n' for number in numbers))
    else:
        path.write_text(json.dumps([{"number": number} for number in numbers]))
    [chunk] = sources.chunks(SourceSettings(path=str(path), format="openchat"), where="here")
    rows = list(sources.read_chunk(chunk))
    for positions in ([0], [3, 4, 49], [], list(numbers)):
        assert list(sources.rows_at(chunk, positions)) == [rows[position] for position in positions]
