"""Parts of messages as rows write them: reasoning, tool calls, results of tools, tools, stretches of text."""

from __future__ import annotations

import datetime
import json
from decimal import Decimal
from typing import Any

import pytest

from data_pipeline.conversation import Conversation, Message, Span, ToolCall
from data_pipeline.errors import RowError
from data_pipeline.read.rows import parse_row
from data_pipeline.settings.sources import SourceSettings

USER = {"role": "user", "content": "Is 2 even?"}
CALL = {"id": "c1", "type": "function", "function": {"name": "halve", "arguments": '{"x":  2}'}}


def read(*messages: dict[str, Any], row: dict[str, Any] | None = None, **source: Any) -> Conversation:
    settings = SourceSettings.model_validate({"path": "x.jsonl", "format": "messages", "class": "c", **source})
    return parse_row({"messages": [USER, *messages], **(row or {})}, place="x.jsonl:1", source=settings)


def answer(**turn: Any) -> Message:
    return read({"role": "assistant", **turn}).messages[-1]


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_is_read_under_each_of_its_names(key: str) -> None:
    assert answer(content="Yes.", **{key: "2 = 2 * 1"}) == Message(
        role="assistant", content="Yes.", reasoning="2 = 2 * 1"
    )
    empty: list[dict[str, Any]] = [{"content": ""}, {"content": None}, {}]
    for content in empty:
        assert answer(**content, **{key: "hm"}) == Message(role="assistant", content="", reasoning="hm")
    assert answer(content="Yes.", **{key: None}).reasoning == answer(content="Yes.", **{key: " "}).reasoning == ""


def test_tool_calls_are_read_in_both_shapes() -> None:
    expected = ToolCall(name="halve", arguments='{"x":  2}', id="c1")
    assert answer(content=None, tool_calls=[CALL]).tool_calls == (expected,)
    bare = {"name": "halve", "arguments": {"x": "é", "y": None}}
    assert answer(tool_calls=[CALL, bare]).tool_calls == (
        expected,
        ToolCall(name="halve", arguments='{"x": "é", "y": null}'),
    )
    empty: list[Any] = [None, "", {}]
    for nothing in empty:
        assert answer(tool_calls=[{"name": "now", "arguments": nothing}]).tool_calls[0].arguments == "{}"


@pytest.mark.parametrize("key", ["arguments", "parameters", "input", "args"])
def test_arguments_are_read_under_each_of_their_names(key: str) -> None:
    """Llama, Anthropic and Gemini call them otherwise; without this, the call would be trained on with none."""
    expected = (ToolCall(name="halve", arguments='{"x": 2}'),)
    call = {"name": "halve", key: {"x": 2}}
    for calls in ([call], [{"type": "function", "function": call}], json.dumps([call])):
        assert answer(tool_calls=calls).tool_calls == expected
    nulls = {"id": None, "type": None, "function": None, "index": 0, **dict.fromkeys(("parameters", "input", "args"))}
    assert answer(tool_calls=[{**nulls, **call}]).tool_calls == expected
    turns = [{"from": "human", "value": "Is 2 even?"}, {"from": "function_call", "value": json.dumps(call)}]
    source = SourceSettings.model_validate({"path": "x", "format": "sharegpt", "class": "c"})
    assert parse_row({"conversations": turns}, place="x:1", source=source).messages[-1].tool_calls == expected


@pytest.mark.parametrize(
    ("call", "key"),
    [
        ({"name": "f", "arguments": {"x": 1}, "parameters": {"y": 2}}, "parameters"),
        ({"name": "f", "function": {"name": "f"}, "arguments": {"x": 1}}, "arguments"),
        ({"name": "f", "kwargs": {"x": 1}}, "kwargs"),
        ({"name": "f", "arguments": {}, "result": "It is even."}, "result"),
        ({"name": "f", "arguments": {}, "train": False}, "train"),
    ],
)
def test_what_a_call_holds_beside_is_named(call: dict[str, Any], key: str) -> None:
    with pytest.raises(RowError, match=rf"tool_calls\[0\]\.{key}: is not read") as caught:
        answer(tool_calls=[call])
    assert caught.value.reason == "unsupported_content"
    del call[key]
    assert answer(tool_calls=[call]).tool_calls, "the control"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), Decimal("1.5"), datetime.datetime(2025, 1, 1), b"x"])
def test_what_json_has_not_is_a_bad_row(value: Any) -> None:
    """From Parquet, and from JSON files of Python, which writes NaN."""
    call, tools = {"name": "f", "arguments": {"x": [value]}}, [{"name": "f", "x": value}]
    for row, where in (({"tool_calls": [call]}, "arguments"), ({"content": "x"}, "tools")):
        with pytest.raises(RowError, match=f"{where}: .* values? of JSON") as caught:
            read({"role": "assistant", **row}, row={"tools": tools} if where == "tools" else None)
        assert caught.value.reason == "wrong_type"


def test_results_of_tools_and_tools_are_read() -> None:
    tool = {"type": "function", "function": {"name": "halve", "description": "é"}}
    messages = [
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "name": "halve", "tool_call_id": "c1", "content": ""},
        {"role": "assistant", "content": "Yes."},
    ]
    for tools in ([tool], json.dumps([tool])):
        found = read(*messages, row={"tools": tools})
        assert found.messages[2] == Message(role="tool", content="", name="halve", tool_call_id="c1")
        assert found.tools == json.dumps([tool], ensure_ascii=False)
    empty: list[Any] = [None, "", [], " ", "[]"]
    assert {read(*messages, row={"tools": nothing}).tools for nothing in empty} == {""}


def test_stretches_of_text_keep_their_weights() -> None:
    parts = [{"type": "text", "text": "a "}, {"text": "b", "weight": 0.5}, {"text": "", "weight": 0}]
    assert answer(content=parts) == Message(
        role="assistant",
        content="a b",
        spans=(Span(text="a ", weight=1.0), Span(text="b", weight=0.5), Span(text="", weight=0.0)),
    )
    assert answer(content=[{"type": "text", "text": "a"}, {"text": "b", "weight": 1}]).spans == ()
    link = {"type": "url_citation", "url": "https://x.org", "title": "A page of the web", "start_index": 0}
    assert answer(content=[{"text": "a", "annotations": [link]}, {"text": "b", "annotations": None}]).content == "ab"
    [user, *_] = read({"role": "assistant", "content": "x"}, row={"system": "s"}).messages
    assert user.spans == ()


def test_think_tags_become_reasoning_where_the_source_asks_for_it() -> None:
    text = "<think>\n2 = 2 * 1\n</think>\n\nYes. <think>no</think>"
    row = {"role": "assistant", "content": text}
    assert read(row).messages[-1] == Message(role="assistant", content=text)
    expected = Message(role="assistant", content="Yes. <think>no</think>", reasoning="2 = 2 * 1")
    assert read(row, think_tags=True).messages[-1] == expected
    empty = {"role": "assistant", "content": "<think>\n\n</think>\n\nYes."}
    assert read(empty, think_tags=True).messages[-1] == Message(role="assistant", content="Yes.")
    asked = {"role": "user", "content": text}
    assert read(asked, {"role": "assistant", "content": "x"}, think_tags=True).messages[1].content == text
    shared = {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": text}]}
    settings = SourceSettings.model_validate(
        {"path": "x.jsonl", "format": "sharegpt", "class": "c", "think_tags": True}
    )
    assert parse_row(shared, place="x", source=settings).messages[-1] == expected


BAD: dict[str, tuple[str, dict[str, Any]]] = {
    "two reasonings": ("unsupported_content", {"content": "x", "reasoning": "a", "thinking": "b"}),
    "reasoning in a list": ("wrong_type", {"content": "x", "reasoning": ["a"]}),
    "nothing at all": ("empty_message", {"content": " ", "tool_calls": [], "reasoning": " "}),
    "calls that are a text": ("wrong_type", {"tool_calls": "halve(2)"}),
    "a call of another kind": ("unsupported_content", {"tool_calls": [{**CALL, "type": "custom"}]}),
    "arguments in another language": ("invalid_json", {"tool_calls": [{"name": "f", "arguments": "x=2"}]}),
    "arguments with NaN": ("invalid_json", {"tool_calls": [{"name": "f", "arguments": '{"x": NaN}'}]}),
    "arguments in a list": ("wrong_type", {"tool_calls": [{"name": "f", "arguments": "[2]"}]}),
    "a part of another kind": ("unsupported_content", {"content": [{"type": "image_url", "weight": 1}]}),
    "an annotation that quotes": ("unsupported_content", {"content": [{"text": "x", "annotations": [{"quote": "y"}]}]}),
    "an annotation that is a text": ("unsupported_content", {"content": [{"text": "x", "annotations": "It is so."}]}),
    "a negative weight of a stretch": ("invalid_weight", {"content": [{"text": "x", "weight": -1}]}),
    "U+FDD0 in reasoning": ("reserved_character", {"content": "x", "reasoning": "a\ufdd0"}),
    "U+FDD0 in arguments": ("reserved_character", {"tool_calls": [{"name": "f", "arguments": {"x": "\ufdd0"}}]}),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_parts_are_named(name: str) -> None:
    reason, turn = BAD[name]
    with pytest.raises(RowError) as caught:
        answer(**turn)
    assert caught.value.reason == reason
    assert "messages, turn 2" in str(caught.value)


def test_a_text_that_takes_gigabytes_to_tokenize_is_named() -> None:
    assert answer(content="x" * 16_000_000).content
    with pytest.raises(RowError, match="messages, turn 2: 16,000,001 characters, at most 16,000,000") as caught:
        answer(content="x" * 16_000_001)
    assert caught.value.reason == "huge_text"


def test_only_answers_have_parts_and_weights_of_parts() -> None:
    good = {"role": "assistant", "content": "x"}
    parts: list[dict[str, Any]] = [{"reasoning": "hm"}, {"tool_calls": [CALL]}]
    for part in parts:
        with pytest.raises(RowError, match="only assistant messages can have"):
            read({"role": "user", "content": "x", **part}, good)
    for role in ("user", "tool"):
        weighted: dict[str, Any] = {"role": role, "content": [{"text": "x", "weight": 1}]}
        with pytest.raises(RowError, match="only the text of assistant messages"):
            read(weighted, good)
        assert read({"role": role, "content": [{"text": "x", "weight": 0}]}, good).messages[1].spans == ()


@pytest.mark.parametrize(
    ("text", "more", "words"),
    [
        ("<think>hm", {}, "not closed"),
        ("<think>hm</think>x", {"reasoning": "hm"}, "keep one"),
        ("<think> </think> ", {}, "empty"),
        ("hm</think>x", {}, "without `<think>`"),
        ([{"text": "<think>hm</think>"}, {"text": "x", "weight": 2}], {}, "weights of its own"),
    ],
)
def test_think_tags_that_cannot_be_read_are_named(text: Any, more: dict[str, Any], words: str) -> None:
    with pytest.raises(RowError, match=words):
        read({"role": "assistant", "content": text, **more}, think_tags=True)


def test_tools_must_be_a_list_of_objects() -> None:
    wrong: list[tuple[Any, str]] = [
        ("x", "invalid_json"),
        ({"a": 1}, "wrong_type"),
        (["f"], "wrong_type"),
        ('{"a": 1}', "wrong_type"),
    ]
    for tools, reason in wrong:
        with pytest.raises(RowError) as caught:
            read({"role": "assistant", "content": "x"}, row={"tools": tools})
        assert caught.value.reason == reason
