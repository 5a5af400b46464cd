"""The connections of `ochat serve`: those of uvicorn, with what some clients need besides.

- Headers must arrive in time, and may only be so long.
- A client that offers another protocol (`Upgrade: h2c`, as the HttpClient of Java and `curl --http2` do) is answered
  over HTTP/1.1. uvicorn's faster parser would lose the body of such a request.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

from ochat_train.serving.errors import ApiError, bad_request, to_json

_MOST_HEAD_BYTES = 65_536  # as the other parser of uvicorn, h11
_OF_AN_UPGRADE = (b"upgrade", b"http2-settings")  # headers, and their names in `Connection`


def make_protocol(header_seconds: float) -> type[asyncio.Protocol]:
    """uvicorn's HTTP. header_seconds: until a connection without a request is closed; uvicorn itself waits for ever."""

    class Connection(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
        _patience: asyncio.TimerHandle | None = None

        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            self._reader = _Reader(self) if hasattr(self, "parser") else None  # h11 needs none of it
            if self._reader is not None:
                self.parser = self._reader

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._watch()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            self._be_done()
            super().connection_lost(exc)

        def send_400_response(self, msg: str) -> None:
            """What is not HTTP gets OpenAI's shape, as all other errors; after the first byte of a response, nothing
            does.
            """
            is_long = self._reader is not None and self._reader.is_too_long
            error = _too_long() if is_long else bad_request(msg.removesuffix("."), param=None, code="invalid_http")
            body, line = to_json(error.body()), f"HTTP/1.1 {error.status} {_REASONS[error.status]}"
            head = f"{line}\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: {len(body)}"
            if self._is_idle():
                self.transport.write(f"{head}\r\n\r\n".encode() + body)
            self.transport.close()

        def _is_idle(self) -> bool:
            return self.cycle is None or self.cycle.response_complete

        def _watch(self) -> None:
            """Wait while no request has begun. A request in work has time limits of its own."""
            if not self._is_idle():
                self._be_done()
            elif self._patience is None:
                self._patience = asyncio.get_running_loop().call_later(header_seconds, self._give_up)

        def _give_up(self) -> None:
            self._patience = None
            if self._is_idle():
                self.transport.abort()

        def _be_done(self) -> None:
            if self._patience is not None:
                self._patience.cancel()
                self._patience = None

    return Connection


_REASONS = {400: "Bad Request", 431: "Request Header Fields Too Large"}


def _too_long() -> ApiError:
    text = f"the headers have more than {_MOST_HEAD_BYTES:,} bytes, the most that this server takes"
    return ApiError(431, text, code="headers_too_large")


class _Reader:
    """httptools' parser as uvicorn's protocol uses it, between the two. protocol: gets what is read.

    is_too_long: whether the headers of a request were.
    """

    def __init__(self, protocol: Any) -> None:
        self._protocol = protocol
        self._url, self._headers, self._offers_upgrade = b"", list[tuple[bytes, bytes]](), False
        self._num_unread = 0  # bytes of which nothing has come yet
        self.is_too_long = False
        self._begin()

    def _begin(self) -> None:
        import httptools

        self._parser = httptools.HttpRequestParser(self)
        with contextlib.suppress(AttributeError):  # as uvicorn does, where httptools can
            self._parser.set_dangerous_leniencies(lenient_data_after_close=True)

    def feed_data(self, data: bytes) -> None:
        """Read. Raises httptools.HttpParserError for what is not HTTP, or has too long headers."""
        import httptools

        self._num_unread += len(data)
        while True:
            try:
                self._parser.feed_data(data)
                break
            except httptools.HttpParserUpgrade as end:
                if not self._offers_upgrade:  # CONNECT
                    raise
                data = self._head_without_upgrade() + data[end.args[0] :]
                self._begin()
        if self._num_unread > _MOST_HEAD_BYTES:
            self.is_too_long = True
            raise httptools.HttpParserError(_too_long().message)

    def should_upgrade(self) -> bool:
        """Never: only HTTP/1 is spoken here."""
        return False

    def should_keep_alive(self) -> bool:
        """As httptools."""
        return bool(self._parser.should_keep_alive())

    def get_method(self) -> bytes:
        """As httptools."""
        return bytes(self._parser.get_method())

    def get_http_version(self) -> str:
        """As httptools."""
        return str(self._parser.get_http_version())

    def on_message_begin(self) -> None:
        """Called by httptools, as all that follow."""
        self._url, self._offers_upgrade = b"", False
        self._headers.clear()
        self._protocol.on_message_begin()

    def on_url(self, url: bytes) -> None:
        """A part of it."""
        self._url += url
        self._protocol.on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A whole one."""
        self._headers.append((name, value))
        self._protocol.on_header(name, value)

    def on_headers_complete(self) -> None:
        """The request begins, unless httptools is about to leave its body out: then it is read again."""
        self._num_unread = 0
        self._offers_upgrade = self._parser.should_upgrade() and self.get_method() != b"CONNECT"
        if not self._offers_upgrade:
            self._protocol.on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A part of it."""
        self._num_unread = 0
        self._protocol.on_body(body)

    def on_message_complete(self) -> None:
        """The end of a request."""
        self._num_unread = 0
        if not self._offers_upgrade:
            self._protocol.on_message_complete()

    def _head_without_upgrade(self) -> bytes:
        lines = [b"%b %b HTTP/%b" % (self.get_method(), self._url, self.get_http_version().encode())]
        for name, value in self._headers:
            if name.lower() == b"connection":
                value = b", ".join(one for one in value.split(b",") if one.strip().lower() not in _OF_AN_UPGRADE)
            if value and name.lower() not in _OF_AN_UPGRADE:
                lines.append(b"%b: %b" % (name, value))
        return b"\r\n".join([*lines, b"", b""])
