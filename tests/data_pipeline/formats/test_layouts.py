"""Everyday layouts give the conversation that they hold; what is unclear is named with its place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.class_names import known_class
from data_pipeline.conversation import Conversation
from data_pipeline.errors import RowError, UserError
from data_pipeline.formats.detect import layout_of
from data_pipeline.prepare.fingerprints import input_fingerprints
from data_pipeline.prepare.prepare import prepare
from data_pipeline.read.layout import found_layout, in_layout, resolved
from data_pipeline.read.rows import RowReader, parse_row
from data_pipeline.settings.sources import SourceSettings
from tests.support.data import make_job, prepare_rows
from tests.support.rows import write_jsonl

ASK, SAY = "What is 1 plus 1?", "It is 2."
CHAT = [{"role": "user", "content": ASK}, {"role": "assistant", "content": SAY}]
CLASSES = {"good": {"condition": "GPT4 Correct", "weight": 1.0}, "bad": {"condition": "GPT3", "weight": 0.1}}
PAIR = {"answer_classes": {"chosen": "good", "rejected": "bad"}}


def settings(format: str = "auto", **more: Any) -> SourceSettings:
    own = {} if {"class_field", "answer_classes"} & set(more) else {"class": "good"}
    return SourceSettings.model_validate({"path": "a", "format": format, **own, **more})


def read(row: Any, **more: Any) -> list[Conversation]:
    """The conversations of a row by `format: auto`."""
    source = settings(**more)
    given = source.fields.model_dump(exclude_defaults=True) if source.fields else {}
    layout = found_layout("a", [("a:1", row)], given=given)
    return list(RowReader(in_layout(source, layout))(row, "a:1"))


def said(conversation: Conversation) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in conversation.messages]


def shared(*names: str) -> list[dict[str, str]]:
    return [{"from": name, "value": text} for name, text in zip(names, (ASK, SAY), strict=True)]


SAME: dict[str, Any] = {
    "messages": {"messages": CHAT},
    "other_list_name": {"conversation": CHAT, "turn": 1},
    "role_content_in_conversations": {"conversations": CHAT},
    "json_text": {"messages": json.dumps(CHAT)},
    "columns": {"messages": {"role": ["user", "assistant"], "content": [ASK, SAY]}},
    "bare_list": CHAT,
    "bare_list_of_texts": [ASK, SAY],
    "capital_roles": {"messages": [{**CHAT[0], "role": "User"}, {**CHAT[1], "role": "ASSISTANT"}]},
    "parts_of_the_responses_api": {
        "messages": [
            {"role": "user", "content": [{"type": "input_text", "text": ASK}]},
            {"role": "assistant", "content": [{"type": "output_text", "text": SAY}]},
        ]
    },
    **{
        f"by_{name}": {"conversations": shared("human", name)} for name in ("bing", "bard", "chatgpt", "Claude", "palm")
    },
    "speaker_and_text": {"dialogue": [{"speaker": "user", "text": ASK}, {"speaker": "bot", "text": SAY}]},
    "input_and_output": {"conversation": [{"input": ASK, "output": SAY}]},
    "user_and_assistant": {"conversations": [{"user": ASK, "assistant": SAY}]},
    "texts_in_turn": {"conversations": [ASK, SAY]},
    "prompt_completion": {"prompt": ASK, "completion": SAY},
    "prompt_response": {"prompt": ASK, "response": SAY},
    "question_answer": {"question": ASK, "answer": SAY},
    "lists_of_prompt_and_completion": {"prompt": CHAT[:1], "completion": CHAT[1:]},
    "alpaca_input_alone": {"instruction": "", "input": ASK, "output": SAY},
    "alpaca_null_instruction": {"instruction": None, "input": ASK, "output": SAY},
    "alpaca_blank_input": {"instruction": ASK, "input": " \n", "output": SAY},
    "an_empty_answer_at_the_end": {"messages": [*CHAT, {"role": "assistant", "content": ""}]},
    "a_null_at_the_end": {"messages": [*CHAT, {"role": "user", "content": None}]},
    "empty_parts_at_the_end": {"messages": [*CHAT, {"role": "user", "content": [{"type": "text", "text": ""}]}]},
    "input_is_a_list_of_messages": {"input": CHAT[:1], "output": SAY, "reasoning": "off"},
    "the_reasoning_again": {"messages": [CHAT[0], {**CHAT[1], "thinking": "One and one."}], "analysis": "One and one."},
    "parts_of_the_system_text": {"system": [{"text": " "}], "messages": CHAT},
    "a_transcript_as_prompt": {"prompt": f"\n\nHuman: {ASK}\n\nAssistant:", "response": SAY},
}


@pytest.mark.parametrize("name", SAME)
def test_one_conversation_in_many_layouts(name: str) -> None:
    [found] = read(SAME[name])
    assert said(found) == [("user", ASK), ("assistant", SAY)]
    assert (found.num_empty_cut, found.system.strip()) == ("at_the_end" in name, "")


def test_a_bare_list_beside_rows_of_openchat_is_a_row() -> None:
    [found] = RowReader(settings("openchat"))(CHAT, "a:1")
    assert said(found) == [("user", ASK), ("assistant", SAY)]
    with pytest.raises(RowError, match=r"items\[0\]\.role: unknown role 'User'; known: user, assistant"):
        RowReader(settings("openchat"))([{**CHAT[0], "role": "User"}], "a:1")


PAIRS: dict[str, Any] = {
    "prompt_as_conversation": {
        "conversations": [{"from": "human", "value": ASK}],
        "chosen": {"from": "gpt", "value": SAY},
        "rejected": {"from": "gpt", "value": "No."},
    },
    "one_message_each_after_messages": {
        "prompt": CHAT[:1],
        "chosen": CHAT[1],
        "rejected": {**CHAT[1], "content": "No."},
    },
    "texts": {"prompt": ASK, "chosen": SAY, "rejected": "No."},
    "messages_after_the_prompt": {"prompt": ASK, "chosen": CHAT[1:], "rejected": [{**CHAT[1], "content": "No."}]},
    "whole_conversations": {"prompt": ASK, "chosen": CHAT, "rejected": [CHAT[0], {**CHAT[1], "content": "No."}]},
    "prompt_as_messages": {"prompt": CHAT[:1], "chosen": CHAT[1:], "rejected": [{**CHAT[1], "content": "No."}]},
    "one_message_each": {"prompt": ASK, "chosen": CHAT[1], "rejected": {**CHAT[1], "content": "No."}},
    "sharegpt_answers": {
        "conversations": None,
        "prompt": ASK,
        "chosen": [{"from": "gpt", "value": SAY}],
        "rejected": [{"from": "gpt", "value": "No."}],
    },
    "transcripts": {
        "chosen": f"\n\nHuman: {ASK}\n\nAssistant: {SAY}",
        "rejected": f"\n\nHuman: {ASK}\n\nAssistant: No.",
    },
    "arena": {
        "conversation_a": CHAT,
        "conversation_b": [CHAT[0], {**CHAT[1], "content": "No."}],
        "winner": "model_a",
    },
}


@pytest.mark.parametrize("name", PAIRS)
def test_two_answers_are_two_classes(name: str) -> None:
    chosen, rejected = read({**PAIRS[name], "id": 7}, **PAIR)
    assert (said(chosen), chosen.class_value) == ([("user", ASK), ("assistant", SAY)], "good")
    assert (said(rejected), rejected.class_value) == ([("user", ASK), ("assistant", "No.")], "bad")
    assert (chosen.id, rejected.id) == ("7.chosen", "7.rejected")


def test_a_tie_needs_its_own_class() -> None:
    row = {**PAIRS["arena"], "winner": "tie"}
    with pytest.raises(RowError, match="no class for `tie`"):
        read(row, **PAIR)
    classes = {"answer_classes": {**PAIR["answer_classes"], "tie": "good"}}
    assert [found.class_value for found in read(row, **classes)] == ["good", "good"]
    with pytest.raises(RowError, match="expected one of model_a"):
        read({**row, "winner": "nobody"}, **PAIR)


def test_pairs_are_prepared_with_the_weights_of_both_classes(tmp_path: Path, small_tokenizer_dir: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [PAIRS["texts"]])
    described = {"path": str(path), "format": "auto", **PAIR}
    _, rows = prepare_rows(make_job(tmp_path / "prepared", [described], small_tokenizer_dir, classes=CLASSES))
    assert [(row.id.rpartition(":")[2], round(max(row.loss_weights), 6)) for row in rows] == [
        ("1.chosen", 1.0),
        ("1.rejected", 0.1),
    ]
    with pytest.raises(UserError, match="give `answer_classes"):
        prepare(make_job(tmp_path / "b", [{**described, "answer_classes": None, "class": "good"}], small_tokenizer_dir,
                         classes=CLASSES), num_workers=1)  # fmt: skip


def test_fields_name_any_other_keys() -> None:
    row = {
        "talk": [{"who": "client", "says": ASK}, {"who": "helper", "says": SAY}],
        "nr": 3.0,
        "rules": "Be brief.",
        "chat": "A nice talk.",
    }
    fields = {"messages": "talk", "role": "who", "content": "says", "roles": {"client": "user", "helper": "assistant"}}
    fields |= {"id": "nr", "system": "rules", "tools": "chat"}
    for source in (settings("messages", fields=fields), settings("sharegpt", fields=fields)):
        with pytest.raises(RowError, match="tools"):
            parse_row(row, place="a:1", source=source)
        found = parse_row({**row, "chat": None}, place="a:1", source=source)
        assert (said(found), found.id, found.system) == ([("user", ASK), ("assistant", SAY)], "3", "Be brief.")
    [found] = read({**row, "chat": None}, fields=fields)
    assert said(found) == [("user", ASK), ("assistant", SAY)]
    [flat] = read({"ask": ASK, "say": SAY}, fields={"prompt": "ask", "answer": "say"})
    assert said(flat) == [("user", ASK), ("assistant", SAY)]
    with pytest.raises(RowError, match="unknown role 'helper'"):
        read(row, fields={**fields, "roles": {"client": "user"}})


def test_auto_takes_fields_that_do_not_hold_the_conversation() -> None:
    for fields in ({"row_weight": "w"}, {"id": "nr"}, {"roles": {"client": "user"}}, {"system": "rules"}):
        row = {"messages": CHAT, "w": 0.5, "nr": 3, "rules": "Brief."}
        row = {key: value for key, value in row.items() if key == "messages" or key in fields.values()}
        assert said(read(row, fields=fields)[0]) == [("user", ASK), ("assistant", SAY)]
    with pytest.raises(UserError, match=r"`fields` says `messages: a.b`, and no row has this key; found: 'a'"):
        read({"a": {"b": CHAT}}, fields={"messages": "a.b"})


def test_rows_of_two_layouts_are_an_error_with_both_and_their_places() -> None:
    rows = [("a:1", {"messages": CHAT}), ("a:2", {"messages": CHAT}), ("a:3", {"prompt": ASK, "completion": SAY})]
    with pytest.raises(UserError, match=r"`format: messages` from a:1; `format: prompt_answer` from a:3"):
        found_layout("a", rows)
    assert str(found_layout("a", rows[:2])) == "format: messages"
    varying = [{"question": ASK, "answer": SAY}, {"question": ASK, "answer": SAY, "system_prompt": "Be brief."}]
    layout = found_layout("a", list(enumerate(varying)))  # type: ignore[arg-type]
    assert (layout.format, layout.fields.system) == ("prompt_answer", "system_prompt")


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"text": "Human: Hi"}, "nothing says who speaks"),
        ({"parent_id": None, "role": "prompter", "text": ASK}, "one message of a tree"),
        ({"query": ASK, "answers": '[{"name": "f"}]', "tools": "[]"}, "calls as JSON text"),
        ({"a": 1}, "no known layout"),
        ([1, 2], "not messages"),
        ({"question": ASK, "answer": True}, "`answer` holds True, which is neither text"),
        ({"question": b"Hi", "answer": b"Ho"}, "`answer` holds b'Ho'"),
        ({"messages": RowError("unreadable_value", "it is damaged")}, "`messages`: it is damaged"),
        ({"conversation": [[ASK, SAY]]}, "`conversation` holds [["),
        (5, "not an object"),
    ],
)
def test_a_row_without_a_known_layout(row: Any, says: str) -> None:
    found = layout_of(row)
    assert isinstance(found, str)
    assert says in found


def test_prepare_says_what_auto_found_and_finds_the_same_rows(tmp_path: Path, small_tokenizer_dir: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [{"conversation": CHAT, "id": n / 1} for n in range(5)])
    told: list[str] = []
    auto = make_job(tmp_path / "a", [{"path": str(path), "format": "auto", "class": "expert"}], small_tokenizer_dir)
    prepare(auto, num_workers=1, say=told.append)
    assert told == [f"{path}: read as `format: messages, fields: {{messages: conversation}}`"]
    named = {"path": str(path), "format": "messages", "class": "expert", "fields": {"messages": "conversation"}}
    by_name = make_job(tmp_path / "b", [named], small_tokenizer_dir)
    assert prepare_rows(by_name)[1] == prepare_rows(auto)[1]
    assert [row.id for row in prepare_rows(auto)[1]] == ["0", "1", "2", "3", "4"]


@pytest.mark.parametrize(
    ("value", "expected"),
    [("", "a:1"), (" ", "a:1"), (None, "a:1"), (float("nan"), "a:1"), (1.0, "1"), (1.5, "1.5"), (7, "7"), ("x", "x")],
)
def test_ids(value: Any, expected: str) -> None:
    assert parse_row({"id": value, "messages": CHAT}, place="a:1", source=settings("messages")).id == expected


@pytest.mark.parametrize(
    ("value", "name"), [(True, "true"), (False, "false"), (1.0, "1"), (0.5, "0.5"), (1, "1"), ("yes", "yes")]
)
def test_numbers_and_truth_values_name_classes(value: Any, name: str) -> None:
    row = {"messages": CHAT, "is_correct": value}
    assert parse_row(row, place="a:1", source=settings("messages", class_field="is_correct")).class_value == name


def test_a_class_may_be_spelled_as_python_writes_it() -> None:
    assert known_class("true", {"True": 1, "good": 2}) == "True"
    assert known_class("1", ("1.0", "2.0")) == "1.0"
    assert known_class("1", ("1.0", "1")) == "1"
    assert known_class("bad", ("good",)) == "bad"


def test_an_empty_end_is_counted_and_the_rows_are_kept(tmp_path: Path, small_tokenizer_dir: Path) -> None:
    tails = [
        [],
        [{"role": "user", "content": "More."}, {"role": "assistant", "content": " "}],
        [{**CHAT[0], "content": ""}],
    ]
    path = write_jsonl(tmp_path / "rows.jsonl", [{"messages": [*CHAT, *tail]} for tail in tails])
    described = {"path": str(path), "format": "messages", "class": "expert"}
    manifest, rows = prepare_rows(make_job(tmp_path / "prepared", [described], small_tokenizer_dir))
    ledger = manifest.ledger
    assert (ledger.kept, ledger.empty_end_cut, ledger.tail_trimmed, ledger.dropped) == (3, 2, 1, {})
    assert len({tuple(row.input_ids) for row in rows}) == 1
    assert [place.rpartition(": ")[0] for place in ledger.examples["empty_end_cut"]] == [f"{path}:2", f"{path}:3"]


def test_an_empty_message_in_the_middle_is_a_bad_row() -> None:
    for messages in ([CHAT[0], {**CHAT[1], "content": ""}, *CHAT], [CHAT[0], {**CHAT[1], "content": ""}]):
        with pytest.raises(RowError, match="empty") as caught:
            read({"messages": messages})
        assert caught.value.reason == "empty_message"


def test_new_keys_at_their_defaults_leave_the_fingerprint_of_the_settings(
    tmp_path: Path, small_tokenizer_dir: Path
) -> None:
    described = {"path": "a.jsonl", "format": "messages", "class": "expert"}
    plain = input_fingerprints(make_job(tmp_path, [described], small_tokenizer_dir), with_sources=False)
    same = make_job(tmp_path, [{**described, "fields": None}], small_tokenizer_dir, ignore_fields=[])
    other = make_job(tmp_path, [described], small_tokenizer_dir, ignore_fields=["notes"])
    assert input_fingerprints(same, with_sources=False) == plain
    assert input_fingerprints(other, with_sources=False)["settings"] != plain["settings"]


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ({"format": "preference", "class": "good"}, "need `answer_classes"),
        ({"format": "messages", "answer_classes": {"chosen": "good"}}, "is for rows with two answers"),
        ({"format": "preference", "class": "good", **PAIR}, "give one of `class`"),
        ({"format": "messages", "class": "good", "fields": {"weight": "w", "masked": "w"}}, "name the same key"),
        (
            {"format": "messages", "class": "good", "fields": {"tools": "messages"}},
            "`fields.tools` and `fields.messages`",
        ),
        ({"format": "messages", "class": "good", "fields": {"role": "content"}}, "name the same key, `content`"),
        ({"format": "prompt_answer", "class": "good", "fields": {"input": "completion"}}, "name the same key"),
        ({"format": "openchat", "class": "good", "fields": {"roles": {"x": "user"}}}, "no other roles"),
        ({"format": "messages", "class": "good", "fields": {"message": "w"}}, "message"),
    ],
)
def test_settings_that_contradict_each_other(source: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        SourceSettings.model_validate({"path": "a", **source})


def test_what_a_conversation_can_do_without_may_be_ignored(tmp_path: Path, small_tokenizer_dir: Path) -> None:
    row = {"messages": CHAT, "system": "Be brief.", "tools": [{"name": "f"}], "id": "x"}
    [found] = RowReader(settings("messages"), ignored=["system", "tools", "id"])(row, "a:1")
    assert (found.system, found.tools, found.id) == ("", "", "a:1")
    [whole] = RowReader(settings("messages"))(row, "a:1")
    assert (whole.system, whole.id, bool(whole.tools)) == ("Be brief.", "x", True)
    described = [{"path": "a.jsonl", "format": "messages", "class": "expert"}]
    for name in ("messages", "messages.content", "messages.role"):
        with pytest.raises(ValueError, match=f"`{name}` holds the conversations"):
            make_job(tmp_path, described, small_tokenizer_dir, ignore_fields=[name])
    path = write_jsonl(tmp_path / "rows.jsonl", [{"messages": CHAT}])
    auto = [{"path": str(path), "format": "auto", "class": "expert"}]
    for name in ("messages", "messages.content"):
        job = make_job(tmp_path / "prepared", auto, small_tokenizer_dir, ignore_fields=[name])
        with pytest.raises(UserError, match=f"`{name}` holds the conversations of data.sources.0"):
            resolved(job.data)
    assert resolved(make_job(tmp_path, auto, small_tokenizer_dir, ignore_fields=["messages.weight"]).data), (
        "the control"
    )


def test_two_classes_that_one_value_may_mean_are_refused(tmp_path: Path, small_tokenizer_dir: Path) -> None:
    by_field = [{"path": "a.jsonl", "format": "messages", "class_field": "q"}]
    weights = {"condition": "GPT4 Correct", "weight": 1.0}
    for names in (("1", "1.0"), ("true", "True")):
        with pytest.raises(ValueError, match="keep one of them"):
            make_job(tmp_path, by_field, small_tokenizer_dir, classes=dict.fromkeys(names, weights))
    make_job(tmp_path, by_field, small_tokenizer_dir, classes=dict.fromkeys(("1", "true"), weights))  # the control
