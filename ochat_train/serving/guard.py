"""What every request passes before any route: who may ask, whether the server still takes requests, and the log.

Pure ASGI: Starlette's BaseHTTPMiddleware would hide from the routes that a client has left.
"""

from __future__ import annotations

import asyncio
import time
import traceback
import uuid
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from data_pipeline.text_rules import did_you_mean
from ochat_train.serving.answering import ClientLeft
from ochat_train.serving.chat import log_cause
from ochat_train.serving.errors import ApiError, unavailable
from ochat_train.serving.metrics import ServerMetrics
from ochat_train.serving.page import page_response
from ochat_train.serving.request_log import RequestLog, RequestRecord
from ochat_train.serving.settings import ServeSettings
from ochat_train.system.messages import print_message

RECORD = "ochat.record"  # in the scope: the RequestRecord
STARTED = "ochat.started"  # in the scope: when the request came, of `time.perf_counter`
LEFT_STATUS = 499  # in log and metrics only, as nginx calls it: the client left before its response began
ROUTES = ("/", "/health", "/metrics", "/v1/models", "/v1/chat/completions", "/v1/render")
_MOST_CHARACTERS = 100
_LINGER_SECONDS = 0.5
_HEADERS = {
    "cache-control": "no-store",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


@dataclass
class Traffic:
    """Requests in work, and whether new ones are refused because the server is about to end."""

    num_requests: int = 0
    is_draining: bool = False


class Guard:
    """An ASGI application around the routes."""

    def __init__(
        self, app: ASGIApp, settings: ServeSettings, *, traffic: Traffic, metrics: ServerMetrics, log: RequestLog
    ) -> None:
        self._app, self._settings, self._traffic, self._metrics, self._log = app, settings, traffic, metrics, log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request; other kinds of ASGI are not served."""
        if scope["type"] != "http":
            return
        started = time.perf_counter()
        record = RequestRecord(id=f"req-{uuid.uuid4().hex}", time=_now(), method=scope["method"][:10])
        scope[RECORD], scope[STARTED] = record, started
        scope["app"] = self._app  # with it, Starlette raises HTTPException for what is not a route
        response = _Response(send, record, self._cors(scope))
        self._traffic.num_requests += 1
        try:
            await self._answer(scope, receive, response)
        finally:
            self._traffic.num_requests -= 1
            record.seconds = round(time.perf_counter() - started, 4)
            self._metrics.requests.labels(record.route, record.status).inc()
            self._log.write(record)

    async def _answer(self, scope: Scope, receive: Receive, response: _Response) -> None:
        record = response.record
        try:
            if self._is_preflight(scope):
                await _preflight(scope, receive, response)
                return
            self._check(scope)
            await self._app(scope, receive, response)
        except (ClientLeft, ClientDisconnect):
            record.status = record.status or LEFT_STATUS
        except HTTPException as error:
            record.error = "not_found" if error.status_code == 404 else "method_not_allowed"
            await self._no_route(error, scope).response()(scope, receive, response)
        except ApiError as error:
            log_cause(error, record.id)
            record.error = error.code
            if response.has_begun:  # no route does this: they send errors of their own after the first byte
                raise
            if error.closes:
                await _discard_body(scope, receive)
            await self._error_response(error, scope)(scope, receive, response)
        except asyncio.CancelledError:
            if self._traffic.is_draining and not response.has_begun:
                record.error = "draining"
                await _draining().response()(scope, receive, response)
            raise
        except Exception:
            print_message(f"{record.id}: a bug of the server:\n{traceback.format_exc()}")
            record.error = "internal_error"
            if response.has_begun:
                raise
            text = f"the server failed; the person who runs it finds more under {record.id}"
            await ApiError(500, text, code="internal_error").response()(scope, receive, response)

    def _check(self, scope: Scope) -> None:
        """Raise ApiError for a request that gets no further. Nothing of its body has been read."""
        settings, path = self._settings, scope["path"]
        _check_framing(scope)
        if settings.allowed_hosts is not None:
            self._check_host(scope)
        if path == "/health":
            return
        if settings.keys and not settings.keys.allow(_authorization(scope)):
            text = "this server needs an API key: send the header `Authorization: Bearer KEY` with a right one"
            headers = {"www-authenticate": "Bearer"}
            raise ApiError(401, text, code="invalid_api_key", headers=headers, closes=True)
        if path == "/metrics":
            return
        if self._traffic.is_draining:
            raise _draining()
        if self._traffic.num_requests > settings.limits.max_requests:
            raise unavailable("the server has too many requests", code="overloaded", retry_after_seconds=1)

    def _check_host(self, scope: Scope) -> None:
        """Without keys, only requests for this machine's own name: a web page elsewhere, whose name somebody has made
        lead here, could drive the server otherwise.
        """
        hosts = Headers(scope=scope).getlist("host")
        name = _host_name(hosts[0]) if len(hosts) == 1 else ""
        if name not in (self._settings.allowed_hosts or ()):
            text = "this server is not for that host: name it with `--allow-host`, or use API keys"
            raise ApiError(403, text, code="unknown_host", closes=True)

    def _no_route(self, error: HTTPException, scope: Scope) -> ApiError:
        """404 and 405 with what there is."""
        path, method = scope["path"][:_MOST_CHARACTERS], scope["method"][:_MOST_CHARACTERS]
        if error.status_code == 405:
            text = f"{method} is not possible for {path}"
            return ApiError(405, text, code="method_not_allowed", headers=error.headers)
        hint = did_you_mean(path, ROUTES)
        return ApiError(404, f"there is no route {path}" + (f", {hint}" if hint else ""), code="not_found")

    def _error_response(self, error: ApiError, scope: Scope) -> Any:
        """JSON; a browser that opens the page without a key gets the page, which asks for one."""
        is_page = scope["path"] == "/" and scope["method"] == "GET"
        if error.code == "invalid_api_key" and is_page and "text/html" in Headers(scope=scope).get("accept", ""):
            return page_response(401)
        return error.response()

    def _cors(self, scope: Scope) -> str | None:
        """The origin of the web page that asks, where it may read the answer."""
        origin = Headers(scope=scope).get("origin")
        return origin if origin in self._settings.allowed_origins else None

    def _is_preflight(self, scope: Scope) -> bool:
        """Browsers ask without a key whether a page of another server may ask; only allowed ones get an answer."""
        asks = "access-control-request-method" in Headers(scope=scope)
        return scope["method"] == "OPTIONS" and asks and self._cors(scope) is not None


class _Response:
    """Sends, with the headers that all responses have, and remembers the status."""

    def __init__(self, send: Send, record: RequestRecord, origin: str | None) -> None:
        self._send, self.record, self._origin, self.has_begun = send, record, origin, False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.has_begun = True
            self.record.status = message["status"]
            headers = MutableHeaders(raw=message.setdefault("headers", []))
            headers["x-request-id"] = self.record.id
            for name, value in _HEADERS.items():
                headers.setdefault(name, value)
            if self._origin is not None:
                headers["access-control-allow-origin"] = self._origin
                headers["vary"] = "Origin"
            message["headers"] = headers.raw
        await self._send(message)


async def _discard_body(scope: Scope, receive: Receive) -> None:
    """Read what is left of a body, for a moment. A client that is still sending when the connection closes gets a reset
    instead of the response.
    """
    if "expect" in Headers(scope=scope):  # it sends nothing before it is asked to, which reading would do
        return

    async def discard() -> None:
        message = await receive()
        while message["type"] == "http.request" and message.get("more_body"):
            message = await receive()

    with suppress(TimeoutError):
        await asyncio.wait_for(discard(), _LINGER_SECONDS)


async def _preflight(scope: Scope, receive: Receive, response: _Response) -> None:
    headers = [
        (b"access-control-allow-methods", b"GET, POST"),
        (b"access-control-allow-headers", b"authorization, content-type"),
        (b"access-control-max-age", b"600"),
    ]
    response.record.route = "preflight"
    await response({"type": "http.response.start", "status": 204, "headers": headers})
    await response({"type": "http.response.body", "body": b""})


def _check_framing(scope: Scope) -> None:
    """Raise ApiError for a request that says in two ways where it ends (RFC 9112, 6.3): a proxy in front of this server
    may read it the other way, and take what follows for the next request, of somebody else.
    """
    found = [row for row in scope["headers"] if row[0] in (b"content-length", b"transfer-encoding")]
    encodings = [value.strip().lower() for name, value in found if name == b"transfer-encoding"]
    if encodings and (len(found) > 1 or encodings != [b"chunked"]):
        text = "send either Content-Length or `Transfer-Encoding: chunked`, once"
        raise ApiError(400, text, code="invalid_http", closes=True)


def _draining() -> ApiError:
    return unavailable("the server is about to end", code="draining", retry_after_seconds=10)


def _authorization(scope: Scope) -> bytes | None:
    """The header, None where it is absent or there are several."""
    found = [value for name, value in scope["headers"] if name == b"authorization"]
    return found[0] if len(found) == 1 else None


def _host_name(host: str) -> str:
    """`localhost` of `localhost:18888`, `[::1]` of `[::1]:18888`."""
    name, colon, port = host.lower().rpartition(":")
    return name if colon and port.isdigit() else host.lower()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
