"""The connections of `ochat serve`: those of uvicorn, with what some clients need besides.

- Headers must arrive in time, and may only be so long.
- A client that offers another protocol (`Upgrade: h2c`, as the HttpClient of Java and `curl --http2` do) is answered
  over HTTP/1.1. uvicorn's faster parser would lose the body of such a request.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

from ochat_train.serving.errors import ApiError, bad_request, to_json

_MOST_HEAD_BYTES = 65_536  # as the other parser of uvicorn, h11
_OF_AN_UPGRADE = (b"upgrade", b"http2-settings")  # headers, and their names in `Connection`
_REASONS = {400: "Bad Request", 431: "Request Header Fields Too Large"}


def make_protocol(header_seconds: float) -> type[asyncio.Protocol]:
    """uvicorn's HTTP. header_seconds: until a connection without a request is closed; uvicorn itself waits for ever."""

    class Connection(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
        _patience: asyncio.TimerHandle | None = None
        _num_unread = 0  # bytes of which httptools has told nothing yet
        _received = _again = b""

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._watch()

        def data_received(self, data: bytes) -> None:
            self._num_unread += len(data)
            while data:
                self._received, self._again = data, b""
                super().data_received(data)
                data = self._again
            if self._is_httptools() and self._num_unread > _MOST_HEAD_BYTES and not self.transport.is_closing():
                text = f"the headers have more than {_MOST_HEAD_BYTES:,} bytes, the most that this server takes"
                self._refuse(ApiError(431, text, code="headers_too_large"))
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            self._be_done()
            super().connection_lost(exc)

        def send_400_response(self, msg: str) -> None:
            self._refuse(bad_request(msg.removesuffix("."), param=None, code="invalid_http"))

        def on_headers_complete(self) -> None:
            self._num_unread = 0
            super().on_headers_complete()

        def on_body(self, body: bytes) -> None:
            self._num_unread = 0
            super().on_body(body)

        def on_message_complete(self) -> None:
            self._num_unread = 0
            super().on_message_complete()

        def _should_upgrade(self) -> bool:
            """Whether `handle_websocket_upgrade` has the request: it does where any other protocol is offered."""
            return self._is_httptools() and self.scope["method"] != "CONNECT"

        def handle_websocket_upgrade(self) -> None:
            """Called while httptools' exception is handled, which says how far it has read: read the request again."""
            import httptools

            end = sys.exception()
            assert isinstance(end, httptools.HttpParserUpgrade)
            self._again = self._head_without_upgrade() + self._received[end.args[0] :]
            self.parser = httptools.HttpRequestParser(self)
            with contextlib.suppress(AttributeError):  # as uvicorn does, where httptools can
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)

        def _head_without_upgrade(self) -> bytes:
            lines = [b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())]
            for name, value in self.headers:
                if name == b"connection":
                    value = b", ".join(one for one in value.split(b",") if one.strip().lower() not in _OF_AN_UPGRADE)
                if value and name not in _OF_AN_UPGRADE:
                    lines.append(b"%b: %b" % (name, value))
            return b"\r\n".join([*lines, b"", b""])

        def _refuse(self, error: ApiError) -> None:
            """What is not HTTP gets OpenAI's shape, as all other errors; after the first byte of a response, nothing
            does.
            """
            body, line = to_json(error.body()), f"HTTP/1.1 {error.status} {_REASONS[error.status]}"
            head = f"{line}\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: {len(body)}"
            if self._is_idle():
                self.transport.write(f"{head}\r\n\r\n".encode() + body)
            self.transport.close()

        def _is_httptools(self) -> bool:
            """h11, uvicorn's other parser, needs nothing of the above."""
            return hasattr(self, "parser")

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
