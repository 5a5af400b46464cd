"""The JSON of answers, as OpenAI's API writes it: whole, and as events of a stream."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ochat_train.inference.engine import Piece, TokenLogprob
from ochat_train.serving.answering import Answer
from ochat_train.serving.errors import to_json

DONE = b"data: [DONE]\n\n"
_MARK = "\N{OBJECT REPLACEMENT CHARACTER}text"
_LOWEST = -9999.0  # what OpenAI writes for a probability of 0, which JSON cannot hold as a logarithm


@dataclass(frozen=True, kw_only=True)
class Head:
    """What every part of an answer repeats. created: seconds since 1970. condition: what was asked under, an
    addition to OpenAI's fields; null where the model has none.
    """

    id: str
    created: int
    model: str
    fingerprint: str
    condition: str | None

    def values(self, kind: str) -> dict[str, Any]:
        """Its fields. kind: the `object` of the document."""
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "condition": self.condition,
        }


def usage(num_prompt_tokens: int, answers: Sequence[Answer]) -> dict[str, int]:
    """Tokens of a request; the prompt counts once."""
    num_tokens = sum(answer.num_tokens for answer in answers)
    return {
        "prompt_tokens": num_prompt_tokens,
        "completion_tokens": num_tokens,
        "total_tokens": num_prompt_tokens + num_tokens,
    }


def completion(head: Head, answers: Sequence[Answer], num_prompt_tokens: int, *, logprobs: bool) -> dict[str, Any]:
    """A whole response."""
    choices = [
        {
            "index": number,
            "message": {"role": "assistant", "content": answer.text, "refusal": None},
            "logprobs": _logprobs(answer.logprobs) if logprobs else None,
            "finish_reason": answer.finish,
        }
        for number, answer in enumerate(answers)
    ]
    return {**head.values("chat.completion"), "choices": choices, "usage": usage(num_prompt_tokens, answers)}


class Events:
    """Events of one stream. with_usage: whether each of them has the key `usage`, and the last its value."""

    def __init__(self, head: Head, *, logprobs: bool, with_usage: bool) -> None:
        self._head, self._logprobs = head.values("chat.completion.chunk"), logprobs
        self._usage = {"usage": None} if with_usage else {}
        self._frames: dict[int, tuple[bytes, bytes]] = {}

    def first(self, index: int) -> bytes:
        """The event that begins a choice."""
        return self._event(index, {"role": "assistant", "content": ""}, None, ())

    def of(self, index: int, piece: Piece) -> bytes:
        """The events of a piece: its text, and then why the answer ended."""
        events = b""
        if piece.text and not piece.logprobs:
            before, after = self._frames.get(index) or self._frame(index)
            events = before + to_json(piece.text) + after
        elif piece.logprobs:
            events = self._event(index, {"content": piece.text}, None, piece.logprobs)
        if piece.finish is not None:
            events += self._event(index, {}, piece.finish, ())
        return events

    def _frame(self, index: int) -> tuple[bytes, bytes]:
        """What is before and after the text in an event without log-probabilities: only the text differs."""
        mark = b'"%s"' % _MARK.encode()
        before, _, after = self._event(index, {"content": _MARK}, None, ()).rpartition(mark)
        return self._frames.setdefault(index, (before, after))

    def usage(self, values: dict[str, int]) -> bytes:
        """The last event, without a choice."""
        return _data({**self._head, "choices": [], "usage": values})

    def _event(self, index: int, delta: dict[str, str], finish: str | None, rows: Sequence[TokenLogprob]) -> bytes:
        choice = {
            "index": index,
            "delta": delta,
            "logprobs": _logprobs(rows) if self._logprobs and rows else None,
            "finish_reason": finish,
        }
        return _data({**self._head, "choices": [choice], **self._usage})


def error_event(body: dict[str, Any]) -> bytes:
    """An error after the first byte; the stream ends after it, without `[DONE]`."""
    return _data(body)


def _data(value: Any) -> bytes:
    return b"data: " + to_json(value) + b"\n\n"


def _logprobs(rows: Sequence[TokenLogprob]) -> dict[str, Any]:
    return {
        "content": [
            {
                **_token(row.text, row.logprob),
                "top_logprobs": [_token(text, logprob) for text, logprob in row.alternatives.items()],
            }
            for row in rows
        ],
        "refusal": None,
    }


def _token(text: str, logprob: float) -> dict[str, Any]:
    """bytes: those of the token, which may be a part of a character; `token` shows that part as U+FFFD."""
    try:
        data = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # half of a pair of surrogates, in the JSON of another server
        data = text.encode("utf-8", "surrogatepass")
    return {
        "token": data.decode("utf-8", "replace"),
        "logprob": logprob if math.isfinite(logprob) else _LOWEST,
        "bytes": list(data),
    }
