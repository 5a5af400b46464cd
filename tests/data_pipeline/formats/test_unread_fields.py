"""A field that could be a part of the conversation and that nothing reads is named, in the first row or the last."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.errors import UserError
from data_pipeline.formats.unread import UnreadFieldError
from data_pipeline.prepare.prepare import prepare
from data_pipeline.read.layout import unread_fields, unused_names
from data_pipeline.settings.sources import SourceSettings
from tests.support.data import make_job, prepare_rows, source
from tests.support.rows import write_jsonl

CHAT = [{"role": "user", "content": "How are you?"}, {"role": "assistant", "content": "I am fine."}]
MESSAGES = SourceSettings.model_validate({"path": "a", "format": "messages", "class": "expert"})
FLAT = SourceSettings.model_validate({"path": "a", "format": "prompt_answer", "class": "expert"})


def in_message(**more: Any) -> dict[str, Any]:
    return {"messages": [CHAT[0], {**CHAT[1], **more}]}


def row(**more: Any) -> dict[str, Any]:
    return {"messages": CHAT, **more}


def names_in(value: Any, settings: SourceSettings = MESSAGES, **more: Any) -> list[str]:
    return [field.name for field in unread_fields(settings, [("a:1", value)], **more)]


UNREAD: dict[str, tuple[Any, list[str]]] = {
    "text": (row(comment="Well said, this."), ["comment"]),
    "text_in_another_script": (row(comment="これはいいですね"), ["comment"]),
    "one_long_word": (row(blob="x" * 41), ["blob"]),
    "a_list": (row(choices=[1, 2]), ["choices"]),
    "an_image": (row(images=["a.png"]), ["images"]),
    "one_image": (row(image="a.png"), ["image"]),
    "sound": (row(audio="a.wav"), ["audio"]),
    "text_inside_an_object": (row(meta={"notes": "Well said, this.", "n": 1}), ["meta.notes"]),
    "two_at_once": (row(comment="Well said.", meta={"a": {"b": [1]}}), ["comment", "meta.a.b"]),
    "a_mask": (row(my_loss_mask="0001"), ["my_loss_mask"]),
    "in_a_message": (in_message(comment="Well said, this."), ["messages.comment"]),
    "a_legacy_call": (in_message(function_call={"name": "f", "arguments": "{}"}), ["messages.function_call"]),
    "an_unknown_mark_of_a_message": (in_message(final=True), ["messages.final"]),
    "an_object_in_a_message": (in_message(audio={"id": "x"}), ["messages.audio"]),
    "spans_of_a_message": (in_message(train_detail=[{"begin_offset": 0}]), ["messages.train_detail"]),
    "a_second_conversation": (row(conversations=CHAT[:1]), ["conversations"]),
    "a_mark_of_a_row": (row(ignore=True), ["ignore"]),
    "a_mark_in_an_object": (row(metadata={"skip": 1}), ["metadata.skip"]),
    "a_mark_in_an_object_of_a_harmless_name": (row(config={"train_on_turn": False}), ["config.train_on_turn"]),
    "a_mark_of_a_message_as_a_number": (in_message(skip=1), ["messages.skip"]),
    "a_mark_as_text": (in_message(exclude="yes"), ["messages.exclude"]),
    "a_mark_with_humps": (in_message(isTrain=0), ["messages.isTrain"]),
    "the_label_of_what_is_not_learned": (in_message(label=-100), ["messages.label"]),
    "labels_of_what_is_not_learned": (row(labels=[-100, 5]), ["labels"]),
    "a_word_of_reasoning": (in_message(thoughts="Hmm."), ["messages.thoughts"]),
    "a_word_of_analysis": (in_message(analysis="Hmm."), ["messages.analysis"]),
    "a_word_of_thinking": (in_message(think="Hmm."), ["messages.think"]),
    "a_word_of_a_trace": (in_message(reasoning_trace="Hmm."), ["messages.reasoning_trace"]),
    "a_channel_of_reasoning": (in_message(channel="analysis"), ["messages.channel"]),
    "a_call_by_its_recipient": (in_message(recipient="functions.times"), ["messages.recipient"]),
    "a_call_of_a_row": (row(function_call={"name": "f"}), ["function_call"]),
    "arguments_of_a_call": (in_message(arguments='{"a":6}'), ["messages.arguments"]),
    "an_instruction": (row(custom_instruction="Answer in French."), ["custom_instruction"]),
    "a_title_that_is_a_text": (row(title="word " * 30), ["title"]),
    "documents": (row(sources=[{"text": "It was a dark and stormy night."}]), ["sources"]),
    "another_answer": (row(rejected_response="I am ill."), ["rejected_response"]),
}
HARMLESS: dict[str, Any] = {
    "nothing_else": row(),
    "known_keys": row(id=1, source="The web, 2024", tags=["a", "b"], scores={"x": [1]}, url="https://x.org/a b"),
    "numbers_and_words": row(views=5, grade_b=0.5, kind="question", checked_by=None, empty=[], nothing={}, no=""),
    "a_link_a_hash_and_a_time": row(page="https://x.org/" + "a" * 50, md5="0f" * 32, at="2024-05-01T10:00:00Z"),
    "labels_inside_an_object": row(meta={"kind": "question", "n": 3, "language": "the language"}),
    "the_prompt_again": row(prompt="How are you?", question=" How are you? "),
    "the_messages_again": row(conversations=CHAT),
    "short_descriptions": row(title="Sums for children", label="a b", labels=[1, 0], sources=[{"name": "web"}]),
    "the_usual_channel_and_recipient": in_message(channel="final", recipient="all", label=1, deleted=False),
    "an_object_of_settings": row(config={"temperature": 0.7, "engine": "a b"}, source={"name": "web", "n": 1}),
    "options_and_counts_of_calls": row(parallel_tool_calls=False, num_tool_calls=2),
    "no_instruction": row(custom_instruction=False),
    "in_a_message": in_message(id="m-1", timestamp=5, name="anna", toxic=False, model="large model"),
    "nulls_as_parquet_has_them": in_message(tool_calls=None, function_call=None, comment=None, images=None),
}


@pytest.mark.parametrize("name", UNREAD)
def test_what_nothing_reads_is_named(name: str) -> None:
    value, names = UNREAD[name]
    assert names_in(value) == names
    assert names_in(value, ignored=names) == []


@pytest.mark.parametrize("name", HARMLESS)
def test_what_describes_a_row_is_not_named(name: str) -> None:
    assert names_in(HARMLESS[name]) == []


def test_a_field_that_another_rule_reads_is_not_named() -> None:
    by_field = MESSAGES.model_copy(update={"class_name": None, "class_field": "judged.as well"})
    value = row(judged={"as well": "the best of all"})
    assert names_in(value) == ["judged.as well"]
    assert names_in(value, by_field) == []
    assert names_in({"prompt": "a b", "completion": "c d", "why": "e f"}, FLAT) == ["why"]


def test_the_preparation_stops_before_it_begins_and_names_all_fields(tmp_path: Path, small_tokenizer_dir: Path) -> None:
    rows = [row(), row(comment="Well said."), in_message(aside="He smiles."), row(comment="Not so well.")]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    for bad_rows in ("error", "drop"):
        job = make_job(tmp_path / "prepared", [source(path)], small_tokenizer_dir, bad_rows=bad_rows)
        with pytest.raises(UserError) as caught:
            prepare(job, num_workers=1)
        places = [(problem.place, problem.problem.split("`")[1]) for problem in caught.value.problems]
        assert places == [(f"{path}:2", "comment"), (f"{path}:3", "messages.aside")]
        assert "`data.ignore_fields: [comment, messages.aside]`" in str(caught.value)
        assert [found.name for found in tmp_path.iterdir()] == ["rows.jsonl"]
    job = make_job(
        tmp_path / "prepared", [source(path)], small_tokenizer_dir, ignore_fields=["comment", "messages.aside"]
    )
    manifest, prepared = prepare_rows(job)
    assert (manifest.ledger.kept, len({tuple(found.input_ids) for found in prepared})) == (4, 1)


def test_the_last_of_many_rows_is_looked_at_as_well(tmp_path: Path, small_tokenizer_dir: Path) -> None:
    """Beyond the rows that are looked at before."""
    path = write_jsonl(tmp_path / "rows.jsonl", [*[row()] * 1500, row(comment="Well said.")])
    job = make_job(tmp_path / "prepared", [source(path)], small_tokenizer_dir, bad_rows="drop")
    with pytest.raises(UserError, match="the field `comment` holds text") as caught:
        prepare(job, num_workers=1)
    assert caught.value.place == f"{path}:1501"
    assert not (tmp_path / "prepared").exists()


def test_the_place_of_an_image_is_not_trained_on(tmp_path: Path, small_tokenizer_dir: Path) -> None:
    """With the images ignored, a text that points to one is a bad row; so is a place at the edge of a text."""
    rows = [
        row(images=["a.png"]),
        {**row(images=["a.png"]), "messages": [{"role": "user", "content": "See <image> here"}, CHAT[1]]},
        {"messages": [{"role": "user", "content": "<image>\nWhat is it?"}, CHAT[1]]},
        {"messages": [{"role": "user", "content": "What does <image> do in SVG?"}, CHAT[1]]},
    ]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    job = make_job(
        tmp_path / "prepared", [source(path)], small_tokenizer_dir, ignore_fields=["images"], bad_rows="drop"
    )
    manifest, prepared = prepare_rows(job)
    assert manifest.ledger.dropped == {"unsupported_content": 2}
    assert [found.id.rpartition(":")[2] for found in prepared] == ["1", "4"]


def test_names_to_ignore_that_no_row_has() -> None:
    rows = [("a:1", row(meta={"notes": 1})), ("a:2", in_message(comment=None))]
    names = ["meta.notes", "messages.comment", "meta.note", "comment"]
    assert list(unused_names(names, rows)) == ["meta.note", "comment"]


def test_the_error_survives_the_way_between_processes() -> None:
    error = UnreadFieldError("a.b", "text of some words", "text")
    again = pickle.loads(pickle.dumps(error))
    assert (again.name, str(again), again.reason) == (error.name, str(error), error.reason)


def test_a_name_that_no_row_has_is_said(tmp_path: Path, small_tokenizer_dir: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [row(comment="Well said.")])
    told: list[str] = []
    job = make_job(tmp_path / "prepared", [source(path)], small_tokenizer_dir, ignore_fields=["comment", "coment"])
    prepare(job, num_workers=1, say=told.append)
    assert told == ["data.ignore_fields: none of the first rows has `coment`"]
