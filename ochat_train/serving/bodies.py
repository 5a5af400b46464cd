"""The body of a request: read within its limits, and parsed as JSON that nothing further has to be afraid of."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from starlette.requests import Request

from data_pipeline.nesting import no_constant
from ochat_train.serving.errors import ApiError, bad_request
from ochat_train.serving.settings import Limits

_MAX_DEPTH = 64  # of lists and objects inside each other; a schema of `response_format` may have many
_MOST_DIGITS = 4000  # of a whole number; Python itself reads 4,300 and speaks of its settings then


async def read_body(request: Request, limits: Limits) -> bytes:
    """The body. Raises ApiError: 415 for another content type than JSON, 413 for more than `max_body_bytes` (also where
    no length is given), 408 for one that arrives too slowly.
    """
    _check_content_type(request)
    length = request.headers.get("content-length")
    if length is not None and int(length) > limits.max_body_bytes:  # h11 has checked that it is a number
        raise _too_large(limits)
    try:
        return await asyncio.wait_for(_read(request, limits), limits.body_seconds)
    except TimeoutError:
        text = f"the body did not arrive within {limits.body_seconds:g} seconds"
        raise ApiError(408, text, code="timeout", closes=True) from None


async def _read(request: Request, limits: Limits) -> bytes:
    chunks, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limits.max_body_bytes:
            raise _too_large(limits)
        chunks.append(chunk)
    return b"".join(chunks)


def _too_large(limits: Limits) -> ApiError:
    text = f"the body has more than {limits.max_body_bytes:,} bytes, the most that this server takes"
    return ApiError(413, text, code="body_too_large", closes=True)


def _check_content_type(request: Request) -> None:
    """Only JSON: a web page of another server can send other types here without being asked by the browser."""
    kind, _, parameters = request.headers.get("content-type", "").partition(";")
    charset = parameters.strip().lower().replace(" ", "").replace('"', "")
    if kind.strip().lower() != "application/json" or charset not in ("", "charset=utf-8", "charset=utf8"):
        text = "the body must be JSON in UTF-8, with the header `Content-Type: application/json`"
        raise ApiError(415, text, code="unsupported_content_type", closes=True)
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise ApiError(415, "compressed bodies are not supported", code="unsupported_content_encoding", closes=True)


def parse_object(body: bytes) -> dict[str, Any]:
    """The JSON object of a body. Raises ApiError (400) for anything else: other values, NaN, a key that is there twice,
    half of a surrogate pair, deep nesting.
    """
    try:
        text = body.decode("utf-8")
        value = json.loads(text, parse_constant=no_constant, parse_int=_int, object_pairs_hook=_object)
    except UnicodeDecodeError as error:
        raise bad_request(f"the body is not UTF-8: byte {error.start}", param=None, code="invalid_json") from None
    except RecursionError:
        raise bad_request("the body is nested too deeply", param=None, code="invalid_json") from None
    except ValueError as error:
        raise bad_request(f"the body is not JSON: {error}", param=None, code="invalid_json") from None
    if not isinstance(value, dict):
        raise bad_request("the body must be a JSON object", param=None, code="invalid_json")
    _check_values(value)
    return value


def _int(text: str) -> int:
    if len(text) > _MOST_DIGITS:
        raise ValueError(f"a number has more than {_MOST_DIGITS} digits")
    return int(text)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {json.dumps(twice)} is there twice")
    return found


def _check_values(value: Any) -> None:
    """Raise ApiError for a value that is nested too deeply or holds text that is not Unicode."""
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > _MAX_DEPTH:
            raise bad_request("the body is nested too deeply", param=None, code="invalid_json")
        inside: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                inside += item.keys()
                inside += item.values()
            elif isinstance(item, list):
                inside += item
            elif isinstance(item, str) and not _is_unicode(item):
                raise bad_request("the body holds half of a surrogate pair", param=None, code="invalid_json")
        level = inside


def _is_unicode(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
