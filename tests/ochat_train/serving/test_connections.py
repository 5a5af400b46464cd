"""What connections do that no client library of the other tests does: other protocols, long headers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import Sequence
from typing import Any

import pytest
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from ochat_train.inference.engine import AnswerSettings
from ochat_train.serving import connections
from ochat_train.serving import server as server_module
from ochat_train.serving.settings import Limits
from tests.support.scripted_engine import Running, ScriptedEngine, serving
from tests.support.waiting import wait_for

HI = [{"role": "user", "content": "Hi"}]
LONGEST = connections._MOST_HEAD_BYTES
PROTOCOLS = [H11Protocol, HttpToolsProtocol]
# As the HttpClient of Java 17 sends its first request to an address without TLS.
SETTINGS = "AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA"
JAVA = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", f"HTTP2-Settings: {SETTINGS}")


def request(*headers: str, **body: Any) -> bytes:
    """A request for an answer, with these headers before its body."""
    data = json.dumps({"messages": HI, **body}).encode()
    lines = ["POST /v1/chat/completions HTTP/1.1", "Host: localhost", "Content-Type: application/json"]
    return "\r\n".join([*lines, *headers, f"Content-Length: {len(data)}", "", ""]).encode() + data


def all_of(server: Running, *parts: bytes) -> bytes:
    """All that comes back until the server ends the connection."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as client:
        with contextlib.suppress(ConnectionError):  # it may end before all is sent
            for part in parts:
                client.sendall(part)
        found = b""
        with contextlib.suppress(ConnectionError):
            while data := client.recv(100_000):
                found += data
        return found


def say_much(prompt_ids: Sequence[int], settings: AnswerSettings) -> Sequence[str]:
    return [" a"] * 10_000


def endless() -> ScriptedEngine:
    return ScriptedEngine(script=say_much, pause_s=0.01, context_tokens=100_000)


def plain(protocol: type[asyncio.Protocol], monkeypatch: pytest.MonkeyPatch) -> None:
    """uvicorn's own connections, for the controls."""
    monkeypatch.setattr(server_module, "make_protocol", lambda seconds: protocol)


def cut(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_client_that_offers_another_protocol_is_answered(
    protocol: type[asyncio.Protocol], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "AutoHTTPProtocol", protocol)
    last = request("Connection: close")
    with serving() as server:
        offers = [
            JAVA,
            ("Upgrade: websocket", "Connection: keep-alive, Upgrade"),
            ("UPGRADE: TLS/1.2", "CONNECTION:  upgrade"),
        ]
        found = all_of(server, b"".join(request(*headers) for headers in offers) + last)
        assert (found.count(b"HTTP/1.1 200 OK"), found.count(b"Hello there")) == (4, 4), found
        found = all_of(server, *cut(request(*JAVA, stream=True) + last, 50))
        assert found.count(b"HTTP/1.1 200 OK") == 2
        assert b"data: [DONE]" in found
        body = request(*JAVA).partition(b"\r\n\r\n")[2]
        chunked = request(*JAVA).partition(b"Content-Length")[0] + b"Transfer-Encoding: chunked\r\n\r\n"
        found = all_of(server, chunked + b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body) + last)
        assert found.count(b"Hello there") == 2
        asked = len(server.engine.asked)
        tunnel = b"CONNECT localhost:1 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        assert all_of(server, tunnel).startswith(b"HTTP/1.1 4")
        assert len(server.engine.asked) == asked


def test_uvicorn_itself_loses_the_body_of_such_a_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control of the test before."""
    plain(HttpToolsProtocol, monkeypatch)
    with serving() as server:
        found = all_of(server, request(*JAVA, "Connection: close"))
        assert b"the body is not JSON" in found
        assert server.engine.asked == []


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_headers_have_a_longest_length(protocol: type[asyncio.Protocol], monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever they are: of the first request, of one behind it while it is in work, behind a body in chunks."""
    monkeypatch.setattr(connections, "AutoHTTPProtocol", protocol)
    expected = b"HTTP/1.1 431" if protocol is HttpToolsProtocol else b"HTTP/1.1 400"
    long, one = b"X-Long: " + b"a" * 2_000_000, request()
    many = b"".join(b"X-%d: a\r\n" % number for number in range(200_000))
    with serving() as server:
        assert all_of(server, request("Connection: close", f"X-Long: {'a' * (LONGEST - 1000)}")).startswith(
            b"HTTP/1.1 200"
        )
        for endless_head in (long, many):
            found = all_of(server, one[: one.index(b"\r\n") + 2] + endless_head)
            assert found.startswith(expected) or found == b"", found[:100]  # a reset, where it was still sending
        assert all_of(server, request(), one[:20], long).count(b"HTTP/1.1 200") <= 1
        asked = len(server.engine.asked)
    if protocol is HttpToolsProtocol:
        with serving(endless()) as server:
            assert b"[DONE]" not in all_of(server, request(stream=True), b"GET / HTTP/1.1\r\n" + long)
            wait_for(lambda: server.engine.num_running == 0)
    assert asked <= 2


def test_uvicorn_itself_takes_headers_of_any_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control of the test before."""
    plain(HttpToolsProtocol, monkeypatch)
    with serving() as server:
        found = all_of(server, request("Connection: close", f"X-Long: {'a' * 2_000_000}"))
        assert found.startswith(b"HTTP/1.1 200")


def test_a_connection_outlives_what_clients_and_proxies_keep() -> None:
    """nginx and load balancers keep one for 60 s; a server that closes it in that moment breaks a request."""
    assert server_module._Server(None, Limits()).config.timeout_keep_alive > 60  # type: ignore[arg-type]
