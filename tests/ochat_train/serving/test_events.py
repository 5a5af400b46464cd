"""The JSON of streams: prepared events are the same bytes as those that are written as a whole."""

from __future__ import annotations

import json
import math

import pytest

from ochat_train.inference.engine import Piece, TokenLogprob
from ochat_train.serving.events import _MARK, Events, Head

LINE_ENDS = "\n \r \x0b \x0c \x1c \x1d \x1e \x85 \u2028 \u2029 日本"
TEXTS = [
    LINE_ENDS,
    "low",
    "",
    'a "quote" \\ and\n\t\x00 line',
    "日本 👩‍👩‍👧",
    "half \ud83d",
    _MARK,
    f'"{_MARK}"',
]


def test_a_text_would_end_lines_otherwise() -> None:
    """The control of the lines of the next test."""
    assert len(json.dumps(LINE_ENDS, ensure_ascii=False).splitlines()) == 4


@pytest.mark.parametrize("with_usage", [False, True])
@pytest.mark.parametrize("text", TEXTS, ids=ascii)
def test_events_of_text_are_those_of_a_document(text: str, with_usage: bool) -> None:
    head = Head(id="chatcmpl-1", created=1, model=_MARK, fingerprint="fp_1", condition=f'"{_MARK}" 日本')
    events = Events(head, logprobs=False, with_usage=with_usage)
    for index in (0, 3, 0):
        found = events.of(index, Piece(text=text, num_tokens=1))
        choice = {"index": index, "delta": {"content": text}, "logprobs": None, "finish_reason": None}
        document = {
            **head.values("chat.completion.chunk"),
            "choices": [choice],
            **({"usage": None} if with_usage else {}),
        }
        if not text:
            assert found == b""
            continue
        assert json.loads(found.removeprefix(b"data: ")) == document
        assert found.endswith(b"}\n\n")
        assert found.count(b"\n") == 2
        assert len(found.decode().splitlines()) == 2, "an event is a line and an empty one, for every reader"
    last = events.of(0, Piece(text=text, num_tokens=1, finish="stop"))
    assert last.count(b"data: {") == bool(text) + 1


def test_bytes_of_a_token_are_its_own_where_it_is_a_part_of_a_character() -> None:
    """Clients join them to characters. The control: the texts alone would not be."""
    data = "日".encode()
    parts = [bytes([byte]).decode("utf-8", "surrogateescape") for byte in data]
    rows = [TokenLogprob(text=part, logprob=-1.0, alternatives={one: -1.0 for one in parts}) for part in parts]
    rows.append(TokenLogprob(text="half \ud83d", logprob=-math.inf, alternatives={}))
    head = Head(id="chatcmpl-1", created=1, model="m", fingerprint="fp_1", condition=None)
    document = json.loads(
        Events(head, logprobs=True, with_usage=False)
        .of(0, Piece(text="日", num_tokens=3, logprobs=tuple(rows)))
        .removeprefix(b"data: ")
    )
    *found, last = document["choices"][0]["logprobs"]["content"]
    assert bytes(byte for row in found for byte in row["bytes"]) == data
    assert [row["token"] for row in found] == ["\ufffd"] * 3
    assert [bytes(one["bytes"]) for one in found[0]["top_logprobs"]] == [data[:1], data[1:2], data[2:]]
    assert last["bytes"] == list("half \ud83d".encode("utf-8", "surrogatepass"))
