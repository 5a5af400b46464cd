"""The JSON of streams: prepared events are the same bytes as those that are written as a whole."""

from __future__ import annotations

import json

import pytest

from ochat_train.inference.engine import Piece
from ochat_train.serving.events import _MARK, Events, Head

TEXTS = ["low", "", 'a "quote" \\ and\n\t\x00 line', "日本 \u2028 👩‍👩‍👧", "half \ud83d", _MARK, f'"{_MARK}"']


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
    last = events.of(0, Piece(text=text, num_tokens=1, finish="stop"))
    assert last.count(b"data: {") == bool(text) + 1
