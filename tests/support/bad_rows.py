"""Rows that cannot be read, each with its reason, and unusual ones that can."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from data_pipeline.prepare.job import PrepareJob
from tests.support.data import make_job, source

USER = {"role": "user", "content": "How are you?"}


ANSWER = {"role": "assistant", "content": "Fine."}


SYSTEM = {"role": "system", "content": "Be brief."}


def line(row: Any) -> bytes:
    return json.dumps(row).encode()


def chat(*messages: Any, **row: Any) -> bytes:
    return line({"messages": list(messages), **row})


def native(*items: Any, **row: Any) -> bytes:
    return line({"items": list(items), "condition": "GPT4 Correct", **row})


def good(format: str, number: int) -> bytes:
    """A right row of a format, with the id `good-NUMBER`."""
    prompt, answer = f"Question {number}?", f"Answer {number}."
    turns: dict[str, dict[str, Any]] = {
        "messages": {"messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]},
        "sharegpt": {"conversations": [{"from": "human", "value": prompt}, {"from": "gpt", "value": answer}]},
        "alpaca": {"instruction": prompt, "output": answer},
        "openchat": {
            "items": [
                {"role": "user", "content": prompt, "weight": 0.0},
                {"role": "assistant", "content": answer, "weight": 1.0},
            ],
            "condition": "GPT4 Correct",
        },
    }
    return line({"id": f"good-{number}", "quality": "expert", **turns[format]})


class Bad(NamedTuple):
    """A wrong row: what it is, the reason that the ledger must give, and the source it is in."""

    name: str
    reason: str
    line: bytes
    format: str = "messages"
    source: dict[str, Any] = {}  # noqa: RUF012 (a NamedTuple's default; never written to)


BY_FIELD = {"class_field": "quality"}


BAD_ROWS = [
    Bad("text that is not JSON", "invalid_json", b"Hello there"),
    Bad("a row that breaks off", "invalid_json", chat(USER, ANSWER)[:-5]),
    Bad("two rows on one line", "invalid_json", chat(USER, ANSWER) + chat(USER, ANSWER)),
    Bad("a raw NUL byte", "invalid_json", chat(USER, ANSWER).replace(b"Fine", b"Fi\0ne")),
    Bad("brackets 100,000 deep", "invalid_json", b'{"messages":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    Bad("brackets 101 deep", "invalid_json", b'{"messages":' + b"[" * 100 + b"]" * 100 + b"}"),
    Bad("a byte that is not UTF-8", "invalid_utf8", chat(USER, ANSWER).replace(b"Fine", b"Fi\xffne")),
    Bad("UTF-8 cut inside a character", "invalid_utf8", chat(USER, ANSWER).replace(b"Fine", "Finé".encode()[:-1])),
    Bad("a lone surrogate in a message", "lone_surrogate", chat(USER, {"role": "assistant", "content": "Fi\ud800ne"})),
    Bad("a lone surrogate in the id", "lone_surrogate", chat(USER, ANSWER, id="\udfff")),
    Bad("a lone surrogate in the class", "unknown_class", chat(USER, ANSWER, quality="\ud800"), "messages", BY_FIELD),
    Bad("a lone surrogate in a key, key missing", "missing_key", line({"\ud800": []})),
    Bad("a lone surrogate in a key, key twice", "duplicate_key", b'{"\\ud800":1,"\\ud800":2}'),
    Bad("a duplicate key", "duplicate_key", b'{"messages":[],' + chat(USER, ANSWER)[1:]),
    Bad(
        "a duplicate key in a message",
        "duplicate_key",
        chat(USER, ANSWER).replace(b'{"role"', b'{"role":"user","role"', 1),
    ),
    Bad("a duplicate id", "duplicate_id", chat(USER, ANSWER, id="good-2")),
    Bad("an id that is a list", "wrong_type", chat(USER, ANSWER, id=[1])),
    Bad("a row that is a list of texts", "not_an_object", line(["Hi", "Ho"])),
    Bad("a row that is an empty list", "not_an_object", line([])),
    Bad("a row that is a number", "not_an_object", b"42"),
    Bad("a row that is null", "not_an_object", b"null"),
    Bad("a missing key", "missing_key", line({"conversations": [USER, ANSWER]})),
    Bad("messages that are not a list", "wrong_type", line({"messages": "Hello"})),
    Bad("an empty list of messages", "no_messages", chat()),
    Bad("a message that is not an object", "wrong_type", chat(USER, "Fine.")),
    Bad("an empty message", "empty_message", chat({"role": "user", "content": ""}, ANSWER)),
    Bad("a message of white space", "empty_message", chat(USER, {"role": "assistant", "content": " \n\t\u3000"})),
    Bad("content that is a number", "wrong_type", chat(USER, {"role": "assistant", "content": 42})),
    Bad("content that is null", "wrong_type", chat(USER, {"role": "assistant", "content": None})),
    Bad("content that is missing", "wrong_type", chat(USER, {"role": "assistant"})),
    Bad(
        "a text part with more than a text",
        "unsupported_content",
        chat({"role": "user", "content": [{"type": "text", "text": "Hi", "image_url": "a.png"}]}, ANSWER),
    ),
    Bad("an image part", "unsupported_content", chat({"role": "user", "content": [{"type": "image_url"}]}, ANSWER)),
    Bad("a tool call without a name", "wrong_type", chat(USER, {**ANSWER, "tool_calls": [{"type": "function"}]})),
    Bad(
        "a weight of a tool's result",
        "invalid_weight",
        chat(USER, ANSWER, {"role": "tool", "content": "4", "weight": 1}),
    ),
    Bad("an unknown role", "unknown_role", chat(USER, ANSWER, {"role": "operator", "content": "4"})),
    Bad("no role", "unknown_role", chat({"content": "Hi"}, ANSWER)),
    Bad("no assistant message", "no_assistant_message", chat(USER, USER)),
    Bad("a system message in the middle", "misplaced_system", chat(USER, SYSTEM, ANSWER)),
    Bad("a second system message", "misplaced_system", chat(SYSTEM, SYSTEM, USER, ANSWER)),
    Bad("two system texts", "misplaced_system", chat(SYSTEM, USER, ANSWER, system="Be kind.")),
    Bad("U+FDD0 in a message", "reserved_character", chat(USER, {"role": "assistant", "content": "Fi\ufdd0ne"})),
    Bad("U+FDD0 in the system text", "reserved_character", chat(USER, ANSWER, system="\ufdd0")),
    Bad("a NaN weight", "invalid_weight", chat(USER, {**ANSWER, "weight": float("nan")})),
    Bad("an infinite weight", "invalid_weight", chat(USER, {**ANSWER, "weight": float("inf")})),
    Bad(
        "a weight beyond the floats",
        "invalid_weight",
        chat(USER, ANSWER | {"weight": 7}).replace(b"7", b"1" + b"0" * 400),
    ),
    Bad("a negative weight", "invalid_weight", chat(USER, {**ANSWER, "weight": -0.1})),
    Bad("a weight above a million", "invalid_weight", chat(USER, {**ANSWER, "weight": 1e7})),
    Bad("a weight that is text", "invalid_weight", chat(USER, {**ANSWER, "weight": "1.0"})),
    Bad("a weight that is true", "invalid_weight", chat(USER, {**ANSWER, "weight": True})),
    Bad("a weighted user message in a class", "invalid_weight", chat({**USER, "weight": 1.0}, ANSWER)),
    Bad("a class that is not in the table", "unknown_class", chat(USER, ANSWER, quality="poor"), "messages", BY_FIELD),
    Bad("no class field", "missing_key", chat(USER, ANSWER), "messages", BY_FIELD),
    Bad("a class field that is a list", "wrong_type", chat(USER, ANSWER, quality=["expert"]), "messages", BY_FIELD),
    Bad("openchat without condition", "missing_key", line({"items": [USER, {**ANSWER, "weight": 1.0}]}), "openchat"),
    Bad(
        "openchat with a null condition",
        "wrong_type",
        native(USER, {**ANSWER, "weight": 1.0}, condition=None),
        "openchat",
    ),
    Bad("openchat without weight", "invalid_weight", native({**USER, "weight": 0.0}, ANSWER), "openchat"),
    Bad("openchat with a system item", "unknown_role", native(SYSTEM, USER, {**ANSWER, "weight": 1.0}), "openchat"),
    Bad(
        "sharegpt with an unknown role",
        "unknown_role",
        line({"conversations": [{"from": "x", "value": "y"}]}),
        "sharegpt",
    ),
    Bad("alpaca without output", "wrong_type", line({"instruction": "Hi"}), "alpaca"),
    Bad(
        "alpaca with a history of one",
        "wrong_type",
        line({"instruction": "Hi", "output": "Ho", "history": [["a"]]}),
        "alpaca",
    ),
    Bad(
        "alpaca with a number as history",
        "wrong_type",
        line({"instruction": "Hi", "output": "Ho", "history": 5}),
        "alpaca",
    ),
]


def job_with(bad: Bad, tmp_path: Path, tokenizer_dir: Path, bad_rows: str) -> tuple[PrepareJob, str]:
    """A job over three good rows with the bad one among them, and the place of the bad one: line 4, after a blank
    line.
    """
    path = tmp_path / "rows.jsonl"
    rows = [good(bad.format, 1), b"", good(bad.format, 2), bad.line, good(bad.format, 3)]
    path.write_bytes(b"\n".join(rows) + b"\n")
    sources = [source(path, format=bad.format, **bad.source)]
    return make_job(tmp_path / "prepared", sources, tokenizer_dir, bad_rows=bad_rows), f"{path}:4"


def utf8(text: str) -> bytes:
    """A row that holds a text itself, not as `\\u` escapes."""
    return json.dumps({"messages": [USER, {"role": "assistant", "content": text}]}, ensure_ascii=False).encode()


def escaped(text: str) -> bytes:
    return chat(USER, {"role": "assistant", "content": text})


ACCEPTED = {
    "line_separator": (utf8("one\u2028two\u2029three\x85four"), "one\u2028two\u2029three\x85four"),
    "nul": (escaped("a\0b"), "a\0b"),
    "escaped_surrogate_pair": (escaped("a🙂b"), "a🙂b"),
    "byte_order_mark_inside_text": (utf8("a\ufeffb"), "a\ufeffb"),
    "replacement_character": (utf8("a\ufffdb"), "a\ufffdb"),
    "carriage_return_at_the_line_end": (escaped("a") + b"\r", "a"),
    "white_space_around_the_row": (b"  " + escaped("a") + b"\t", "a"),
    "white_space_around_the_text": (escaped(" \n a \n\n"), " \n a \n\n"),
    "one_megabyte": (escaped("The answer is 42. " * 60_000), "The answer is 42. " * 60_000),
    "unknown_keys": (chat(USER, {**ANSWER, "name": "x"}, source="web", score=None), "Fine."),
    "null_id_and_weight": (chat(USER, {**ANSWER, "weight": None}, id=None, system=None), "Fine."),
    "whole_number_as_id": (chat(USER, ANSWER, id=17), "Fine."),
    "empty_tool_calls": (chat(USER, {**ANSWER, "tool_calls": None}), "Fine."),
    "empty_system_message": (chat({"role": "system", "content": ""}, USER, ANSWER), "Fine."),
    "assistant_speaks_first": (chat(ANSWER), "Fine."),
}
