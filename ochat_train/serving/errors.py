"""Errors as OpenAI's API writes them.

An `ApiError` is what a client gets to read. Anything else that fails inside is logged for the person who runs the
server, and the client reads that it failed and the id of the request: texts of engines and of other servers are never
quoted to clients.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
_LINE_ENDS = {ord(character): f"\\u{ord(character):04x}" for character in "\x85\u2028\u2029"}
_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """A request that is not answered, and why.

    status: of HTTP. message: for the client, a full sentence. param: the field that is wrong, None for none. code: one
    word for programs. headers: of the response, such as Retry-After. closes: whether the connection ends, because the
    body was not read.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
        closes: bool = False,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.headers, self.closes = dict(headers or {}), closes

    def body(self) -> dict[str, Any]:
        """The JSON of the response, and of an error inside a stream."""
        kind = _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        """The whole response."""
        return json_response(
            self.body(), self.status, {**self.headers, **({"connection": "close"} if self.closes else {})}
        )


def bad_request(message: str, *, param: str | None, code: str = "invalid_value") -> ApiError:
    """A 400."""
    return ApiError(400, message, code=code, param=param)


def unavailable(message: str, *, code: str, retry_after_seconds: int) -> ApiError:
    """A 503: asking again later may help."""
    return ApiError(503, message, code=code, headers={"retry-after": str(retry_after_seconds)})


def too_many(message: str, *, retry_after_seconds: int) -> ApiError:
    """A 429: there are too many requests at the moment."""
    return ApiError(429, message, code="queue_full", headers={"retry-after": str(retry_after_seconds)})


def json_response(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A JSON document. Starlette's own refuses half a surrogate pair, which an error may quote; this escapes it."""
    return Response(to_json(value), status, dict(headers or {}), media_type="application/json")


def to_json(value: Any) -> bytes:
    """Compact JSON in UTF-8, in one line for every reader: some clients (those that use httpx's `iter_lines`) take
    U+0085, U+2028 and U+2029 for ends of lines, and would cut an event of a stream there.
    """
    text = _ENCODER.encode(value)
    if not text.isascii():
        text = text.translate(_LINE_ENDS)
    try:
        return text.encode()
    except UnicodeEncodeError:  # half of a pair of surrogates, which UTF-8 cannot hold
        return json.dumps(value, allow_nan=False, separators=(",", ":")).encode()
