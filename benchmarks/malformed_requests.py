"""Requests that are wrong, made from a seed: bytes that are no HTTP, bodies that are no JSON, fields of wrong types."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_ROUTES = ("/v1/chat/completions", "/v1/render")
_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 3.5, -0.0, 10**400, 2**63, 2**64, 1e308, "", "x", "\x00", "\ud800", "\u202e", "x" * 5000,
    [], [[]], {}, [None], [1], {"": ""}, {"type": "text"}, [{"type": "image_url", "image_url": {"url": "x"}}],
    "<|end_of_turn|>", {"condition": 5}, ["a"] * 50,
)  # fmt: skip
_FIELDS = (
    "model", "condition", "messages", "stream", "stream_options", "n", "max_tokens", "max_completion_tokens",
    "temperature", "top_p", "seed", "stop", "logprobs", "top_logprobs", "response_format", "tools", "tool_choice",
    "chat_template_kwargs", "logit_bias", "user", "presence_penalty", "best_of", "top_k", "conditions", "prompt",
)  # fmt: skip
_MESSAGE_FIELDS = ("role", "content", "name", "tool_calls", "tool_call_id", "reasoning_content", "weight", "refusal")
_METHODS = ("GET", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "TRACE", "CONNECT", "PROPFIND", "post", "X" * 300)
_PATHS = (
    "/v1/completions", "/v1/chat/completions/", "//v1/chat/completions", "/v1/models/nothing", "/v1/models/%00",
    "/v1/models/%ff%fe", "/../../etc/passwd", "/%2e%2e/", "/v1/models/" + "a" * 4000, "/invocations", "/tokenize",
    "/docs", "/v1/chat/completions?key=x", "/favicon.ico", "/\xe9", "*", "http://elsewhere.example/v1/models",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Malformed:
    """One request as bytes. kind: what is wrong with it."""

    kind: str
    data: bytes


def malformed_requests(number: int, *, seed: int, host: str) -> list[Malformed]:
    """`number` requests, the same ones for one seed. A few are valid in spite of it: a byte may change only a text."""
    rng = random.Random(seed)
    makers = list(_KINDS.items())
    found = []
    for index in range(number):
        kind, make = makers[index % len(makers)]
        found.append(Malformed(kind=kind, data=make(rng, host)))
    return found


def good_body(rng: random.Random) -> dict[str, Any]:
    """A body that is right, with some of the fields that clients send."""
    body: dict[str, Any] = {"messages": [{"role": "user", "content": f"Is {rng.randrange(1000)} even or odd?"}]}
    body |= {"max_tokens": 4, "temperature": rng.choice([0, 1])}
    if rng.random() < 0.5:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return body


def request_bytes(
    body: bytes, host: str, *, path: str = _ROUTES[0], method: str = "POST", headers: dict[str, str] | None = None
) -> bytes:
    """A request of HTTP/1.1 after which the connection closes. headers: None removes a default one by an empty text."""
    given = {
        "host": host,
        "connection": "close",
        "content-type": "application/json",
        "content-length": str(len(body)),
        **(headers or {}),
    }
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in given.items() if value)]
    return "\r\n".join(lines).encode("utf-8", "surrogatepass") + b"\r\n\r\n" + body


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


def _wrong_field(rng: random.Random, host: str) -> bytes:
    body = good_body(rng) | {rng.choice(_FIELDS): rng.choice(_VALUES) for _ in range(rng.choice([1, 1, 1, 3]))}
    return request_bytes(_json(body), host, path=rng.choice(_ROUTES))


def _wrong_message(rng: random.Random, host: str) -> bytes:
    body = good_body(rng)
    roles = ("user", "assistant", "system", "tool", "developer", "function", "")
    made = [
        {"role": rng.choice(roles), "content": "x", rng.choice(_MESSAGE_FIELDS): rng.choice(_VALUES)}
        for _ in range(rng.randint(1, 4))
    ]
    body["messages"] = rng.choice([made, made * 600, [*made, rng.choice(_VALUES)]])
    return request_bytes(_json(body), host, path=rng.choice(_ROUTES))


def _wrong_conversation(rng: random.Random, host: str) -> bytes:
    """Right fields in an order of roles that most templates refuse, often longer than the context."""
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": rng.choice(["{}", "[", "null"])}}
    texts = ("x", "<|end_of_turn|>", "GPT4 Correct User:", "\ud7ff\ufffe", "word " * rng.choice([1, 300, 20_000]))
    messages: list[dict[str, Any]] = []
    for _ in range(rng.randint(1, 6)):
        message: dict[str, Any] = {
            "role": rng.choice(["user", "assistant", "system", "tool"]),
            "content": rng.choice(texts),
        }
        if rng.random() < 0.2:
            message |= {"tool_calls": [call]}
        if rng.random() < 0.2:
            message |= {"tool_call_id": rng.choice(["1", "2"])}
        messages.append(message)
    body = good_body(rng) | {"messages": messages, "max_tokens": rng.choice([1, 255, 10**9])}
    return request_bytes(_json(body), host, path=rng.choice(_ROUTES))


def _changed_bytes(rng: random.Random, host: str) -> bytes:
    data = bytearray(_json(good_body(rng)))
    for _ in range(rng.randint(1, 6)):
        data[rng.randrange(len(data))] = rng.randrange(256)
    return request_bytes(bytes(data), host)


def _cut_body(rng: random.Random, host: str) -> bytes:
    data = _json(good_body(rng))
    return request_bytes(data[: rng.randrange(len(data))], host)


def _other_json(rng: random.Random, host: str) -> bytes:
    deep = rng.choice([70, 2000, 100_000])
    texts = (
        b"", b"null", b"[]", b'"x"', b"NaN", b'{"temperature": NaN, "messages": []}', b"{'messages': []}",
        b"\xff\xfe{}",
        b'{"messages": [], "messages": []}', b"[" * deep, b'{"a":' * deep + b"1" + b"}" * deep, b"1" * 5000,
        b'{"n": ' + b"9" * 5000 + b"}", b'{"temperature": 1e999999}', b"\xef\xbb\xbf{}", b"\x00" * 100,
    )  # fmt: skip
    return request_bytes(rng.choice(texts), host, path=rng.choice(_ROUTES))


def _other_type(rng: random.Random, host: str) -> bytes:
    kinds = (
        "", "text/plain", "multipart/form-data; boundary=x", "application/x-www-form-urlencoded", "application/jsonx",
        "application/json; charset=utf-16", "application/json;charset=\xe9", "a" * 3000,
    )  # fmt: skip
    headers = {"content-type": rng.choice(kinds)}
    if rng.random() < 0.3:
        headers = {"content-encoding": rng.choice(["gzip", "br", "identity, gzip", "\xe9"])}
    return request_bytes(_json(good_body(rng)), host, headers=headers)


def _other_length(rng: random.Random, host: str) -> bytes:
    body = _json(good_body(rng))
    length = rng.choice(["-1", "abc", "1e3", "0", "5", "99999999999999999999", "2097153", "+5", "5, 5", " "])
    return request_bytes(body, host, headers={"content-length": length})


def _bad_chunks(rng: random.Random, host: str) -> bytes:
    chunks = (
        b"zz\r\nhello\r\n0\r\n\r\n",
        b"5\r\nhel",
        b"-5\r\nhello\r\n",
        b"ffffffffffffffffff\r\n",
        b"0\r\n\r\n",
        b"\r\n" * 9,
    )
    headers = {
        "content-length": rng.choice(["", "5"]),
        "transfer-encoding": rng.choice(["chunked", "gzip", "chunkedx"]),
    }
    return request_bytes(rng.choice(chunks), host, headers=headers)


def _other_place(rng: random.Random, host: str) -> bytes:
    method, path = rng.choice([*_METHODS, "POST", "GET"]), rng.choice([*_PATHS, *_ROUTES, "/", "/health", "/metrics"])
    return request_bytes(_json(good_body(rng)), host, method=method, path=path)


def _no_http(rng: random.Random, host: str) -> bytes:
    texts = (
        rng.randbytes(rng.randint(1, 2000)) + b"\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\r\n\r\n",
        b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"GET /health HTTP/1.1\r\n\r\n", b"GET / HTTP/1.1\r\nhost\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 9000 + b"\r\n", b"GET / HTTP/1.1\r\nx: " + b"a" * 200_000 + b"\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n", b"\r\n\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: localhost\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n",
    )  # fmt: skip
    return rng.choice(texts)


_KINDS: dict[str, Callable[[random.Random, str], bytes]] = {
    "fields": _wrong_field,
    "messages": _wrong_message,
    "conversations": _wrong_conversation,
    "changed bytes": _changed_bytes,
    "cut bodies": _cut_body,
    "other JSON": _other_json,
    "content types": _other_type,
    "lengths": _other_length,
    "chunks": _bad_chunks,
    "routes and methods": _other_place,
    "no HTTP": _no_http,
}
