"""Keys, limits and what happens when a client, the engine or the server leaves."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import socket
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.types import Receive
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from data_pipeline.errors import UserError
from ochat_train.inference.engine import AnswerSettings, EngineBusy, EngineError, EngineRefused, EngineUnavailable
from ochat_train.serving import chat, connections, guard
from ochat_train.serving.admission import Admission
from ochat_train.serving.errors import ApiError
from ochat_train.serving.guard import ROUTES
from ochat_train.serving.keys import KEYS_VARIABLE, Keys, read_keys
from ochat_train.serving.request_log import RequestLog, RequestRecord
from ochat_train.serving.server import Complaints, bind, is_loopback
from ochat_train.serving.settings import Limits
from tests.support.scripted_engine import Running, ScriptedEngine, serving
from tests.support.waiting import wait_for

CHAT = "/v1/chat/completions"
HI = [{"role": "user", "content": "Hi"}]
KEY, OTHER_KEY = "sk-right-0123456789", "sk-other-0123456789"


def say_much(prompt_ids: Sequence[int], settings: AnswerSettings) -> Sequence[str]:
    return [" a"] * 10_000


def endless(**changes: Any) -> ScriptedEngine:
    """An engine whose answers take minutes."""
    return ScriptedEngine(script=say_much, pause_s=0.01, context_tokens=100_000, **changes)


def error_of(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["code"]


def ask(server: Running, **body: Any) -> httpx.Response:
    return server.client.post(CHAT, json={"messages": HI, **body})


def events_of(response: httpx.Response) -> list[str]:
    return [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]


# Keys


def test_every_route_but_health_needs_a_key() -> None:
    with serving(keys=Keys([KEY, OTHER_KEY])) as server:
        paths = [*ROUTES, "/v1/models/small", "/v1/completions", "/invocations", "/nothing", "/health/", "//health"]
        wrong: list[list[tuple[str, str]]] = [
            [],
            [("authorization", f"Bearer {KEY[:-1]}")],
            [("authorization", f"Bearer {KEY}x")],
            [("authorization", KEY)],
            [("authorization", f"Basic {KEY}")],
            [("authorization", "Bearer")],
            [("authorization", "Bearer \u00ff")],
            [("authorization", f"Bearer {KEY}"), ("authorization", f"Bearer {KEY}")],
            [("x-api-key", KEY)],
        ]
        for path in paths:
            for method in ("GET", "POST", "HEAD", "OPTIONS", "DELETE"):
                for headers in wrong if method == "POST" else wrong[:2]:
                    sent = [(name.encode(), value.encode("latin-1")) for name, value in headers]
                    response = server.client.request(method, f"{server.url}{path}", headers=sent)
                    if path == "/health":
                        assert response.status_code in (200, 405)
                    else:
                        assert response.status_code == 401, (method, path, headers)
                        assert method == "HEAD" or error_of(response) == (401, "invalid_api_key")
            for key in (KEY, OTHER_KEY):
                response = server.client.get(path, headers={"authorization": f"bearer {key}"})
                assert response.status_code in (200, 404, 405), path
        assert server.engine.asked == []
        good = ask(server)
        assert good.status_code == 401
        response = server.client.get("/", headers={"accept": "text/html"})  # a browser: the page asks for the key
        assert (response.status_code, response.headers["content-type"]) == (401, "text/html; charset=utf-8")
        assert KEY not in response.text


def test_keys_are_checked_before_the_body_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "_LINGER_SECONDS", 0.01)  # nothing more is sent
    with (
        serving(keys=Keys([KEY])) as server,
        socket.create_connection(("127.0.0.1", server.port), timeout=60) as client,
    ):
        client.sendall(_head("POST", CHAT, {"content-type": "application/json", "content-length": "1000"}))
        answer = b"".join(iter(lambda: client.recv(10_000), b""))  # until the connection ends
        assert answer.startswith(b"HTTP/1.1 401")


def test_keys_are_read_from_all_places(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("\ufeffsk-file\r\n# mine\r\n\r\n  sk-second  \r\n", newline="")  # as an editor of Windows writes it
    keys = read_keys(["sk-KEY1", "sk-KEY2"], file, {KEYS_VARIABLE: "sk-a, sk-b"})
    assert len(keys) == 6
    for key in ("sk-KEY1", "sk-KEY2", "sk-file", "sk-second", "sk-a", "sk-b"):
        assert keys.allow(f"Bearer {key}".encode())
    assert not keys.allow(b"Bearer # mine")
    assert not keys.allow(None)
    assert "sk-" not in repr(keys) + repr(vars(keys))
    assert not read_keys([], None, {})
    file.write_text("# none\n")
    for arguments, named, environment in (
        ([], file, {}),
        ([], tmp_path / "absent", {}),
        ([], None, {KEYS_VARIABLE: " "}),
        ([""], None, {}),
        (["sk-\u00e9"], None, {}),
        (["sk a"], None, {}),
        (["\ufeffsk-a"], None, {}),
    ):
        with pytest.raises(UserError) as raised:
            read_keys(arguments, named, environment)
        assert "sk-" not in str(raised.value).removeprefix("--api-keys")


def test_requests_for_other_hosts_are_refused_without_keys() -> None:
    """A name that somebody made lead to this machine does not let their web page in."""
    hosts = frozenset({"localhost", "127.0.0.1", "[::1]"})
    with serving(allowed_hosts=hosts) as server:
        for host in ("localhost", f"localhost:{server.port}", "127.0.0.1:1", "[::1]:18888", "LOCALHOST"):
            assert server.client.get("/v1/models", headers={"host": host}).status_code == 200
        for host in ("evil.example", "localhost.evil.example", "127.0.0.1.evil.example:80", "", "localhost:80:80"):
            for path in ("/v1/models", "/", "/health"):
                assert error_of(server.client.get(path, headers={"host": host})) == (403, "unknown_host")


def test_other_web_pages_read_answers_only_where_that_is_said() -> None:
    page = "https://chat.example"
    asks = {"origin": page, "access-control-request-method": "POST"}
    with serving(keys=Keys([KEY])) as server:
        assert server.client.options(CHAT, headers=asks).status_code == 401
        response = server.client.get("/health", headers={"origin": page})
        assert "access-control-allow-origin" not in response.headers
    with serving(keys=Keys([KEY]), allowed_origins=frozenset({page})) as server:
        response = server.client.options(CHAT, headers=asks)
        assert (response.status_code, response.headers["access-control-allow-origin"]) == (204, page)
        assert "authorization" in response.headers["access-control-allow-headers"]
        response = server.client.get("/v1/models", headers={"origin": page})
        assert (response.status_code, response.headers["access-control-allow-origin"]) == (401, page)
        other = {**asks, "origin": "https://evil.example"}
        response = server.client.options(CHAT, headers=other)
        assert response.status_code == 401
        assert "access-control-allow-origin" not in response.headers


def test_only_this_machine_is_local() -> None:
    assert all(map(is_loopback, ("localhost", "127.0.0.1", "127.1.2.3", "::1")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.0.2.1")))
    with pytest.raises(UserError, match="has no address"):
        is_loopback("nothing.invalid")


def test_a_port_that_is_taken_is_named() -> None:
    bound = bind("localhost", 0)
    port = bound.sockets[0].getsockname()[1]
    try:
        for one in bound.sockets:
            one.listen()
        with pytest.raises(UserError, match=f"--port {port}"):
            bind("127.0.0.1", port)
    finally:
        for one in bound.sockets:
            one.close()


# Limits


def _head(method: str, path: str, headers: dict[str, str]) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "host: localhost", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode()


def test_long_bodies_are_refused_with_and_without_a_length(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(limits=Limits(max_body_bytes=1000, drain_seconds=0)) as server:
        body = json.dumps({"messages": HI, "user": "x" * 900}).encode()
        headers = {"content-type": "application/json"}
        assert len(body) < 1000
        assert server.client.post(CHAT, content=body, headers=headers).status_code == 200
        longer = json.dumps({"messages": HI, "user": "x" * 100_000}).encode()
        for content in (longer, (longer[i : i + 1000] for i in range(0, len(longer), 1000))):
            response = server.client.post(CHAT, content=content, headers=headers)
            assert error_of(response) == (413, "body_too_large")
        monkeypatch.setattr(guard, "_LINGER_SECONDS", 0.01)  # nothing more is sent
        with socket.create_connection(("127.0.0.1", server.port), timeout=60) as client:  # it is not waited for
            client.sendall(_head("POST", CHAT, {**headers, "content-length": str(10**12)}))
            assert client.recv(10_000).startswith(b"HTTP/1.1 413")
        assert len(server.engine.asked) == 1


NEXT = b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n"  # in the body by one header, behind it by the other


def _bytes_of(protocol: type[asyncio.Protocol], headers: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> bytes:
    """All that comes back for a body in chunks, with these headers, and for another request behind it."""
    monkeypatch.setattr(connections, "AutoHTTPProtocol", protocol)
    body = json.dumps({"messages": HI}).encode()
    chunks = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    lines = [f"POST {CHAT} HTTP/1.1", "host: localhost", "content-type: application/json", *headers]
    head = "\r\n".join([*lines, "", ""]).replace("LENGTH", str(len(chunks) + len(NEXT))).encode()
    ending = NEXT.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n")
    with serving() as server, socket.create_connection(("127.0.0.1", server.port), timeout=60) as client:
        client.sendall(head + chunks + ending)
        return b"".join(iter(lambda: _all_of(client), b""))


@pytest.mark.parametrize("protocol", [H11Protocol, HttpToolsProtocol])
@pytest.mark.parametrize(
    "headers",
    [
        ("content-length: LENGTH", "transfer-encoding: chunked"),
        ("transfer-encoding: chunked", "content-length: LENGTH"),
        ("Transfer-Encoding:\tCHUNKED", "Content-Length: LENGTH"),
        ("transfer-encoding: identity, chunked",),
        ("transfer-encoding: chunked", "transfer-encoding: chunked"),
    ],
)
def test_a_body_with_two_ends_is_refused_and_nothing_behind_it_is_answered(
    protocol: type[asyncio.Protocol], headers: Sequence[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy in front of the server, which reads the other header, would take the second answer for another one."""
    found = _bytes_of(protocol, headers, monkeypatch)
    assert found.startswith(b"HTTP/1.1 400")
    assert found.count(b"HTTP/1.1 ") == 1
    assert b"invalid_http" in found


@pytest.mark.parametrize("protocol", [H11Protocol, HttpToolsProtocol])
def test_one_end_is_taken_and_the_next_request_is_answered(
    protocol: type[asyncio.Protocol], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _bytes_of(protocol, ["transfer-encoding: chunked"], monkeypatch).count(b"HTTP/1.1 200") == 2


def test_without_the_check_of_the_ends_the_second_request_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "_check_framing", lambda scope: None)
    headers = ("content-length: LENGTH", "transfer-encoding: chunked")
    assert _bytes_of(H11Protocol, headers, monkeypatch).count(b"HTTP/1.1 200") == 2


REFUSED_EARLY = [
    ("401", {"authorization": "Bearer x"}),
    ("415", {"authorization": "Bearer sk-1", "content-type": "text/plain"}),
    ("413", {"authorization": "Bearer sk-1", "content-type": "application/json", "content-length": str(3 * 2**20)}),
]


def _send_in_parts(port: int, headers: dict[str, str]) -> bytes:
    """A client that sends its whole body before it reads anything."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
        client.sendall(_head("POST", CHAT, {"content-length": "300000", **headers}))
        for _ in range(int(headers.get("content-length", "300000")) // 100_000):
            client.sendall(b"x" * 100_000)
            time.sleep(0.01)
        client.sendall(b"x" * (int(headers.get("content-length", "0")) % 100_000))
        return b"".join(iter(lambda: client.recv(10_000), b""))


@pytest.mark.parametrize(("status", "headers"), REFUSED_EARLY)
def test_a_client_that_is_still_sending_reads_the_refusal(
    status: str, headers: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "_LINGER_SECONDS", 60.0)
    with serving(keys=Keys(["sk-1"])) as server:
        answer = _send_in_parts(server.port, headers)
    assert answer.startswith(f"HTTP/1.1 {status}".encode())
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["message"]


def test_without_reading_on_that_client_gets_a_reset(monkeypatch: pytest.MonkeyPatch) -> None:
    async def do_nothing(*arguments: Any) -> None:
        return None

    monkeypatch.setattr(guard, "_discard_body", do_nothing)
    with serving(keys=Keys(["sk-1"])) as server, pytest.raises(ConnectionError):
        _send_in_parts(server.port, REFUSED_EARLY[0][1])


def test_connections_that_find_no_file_are_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    """asyncio itself prints a traceback for each, many thousands in ten seconds."""
    loop, complain = asyncio.new_event_loop(), Complaints()
    other: list[Any] = []
    loop.default_exception_handler = other.append  # type: ignore[method-assign]
    for _ in range(1000):
        complain(loop, {"message": "x", "exception": OSError(errno.EMFILE, "Too many open files")})
    complain(loop, {"message": "x", "exception": ValueError("a bug")})
    loop.close()
    assert capsys.readouterr().err.count("Too many open files") == 1
    assert [str(context["exception"]) for context in other] == ["a bug"]


def test_slow_headers_and_bodies_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "_LINGER_SECONDS", 0.01)  # nothing more is sent
    with serving(limits=Limits(header_seconds=0.2, drain_seconds=0)) as server:
        for sent in (b"", b"GET /health HTTP/1.1\r\nhost: localhost\r\nx: "):
            with socket.create_connection(("127.0.0.1", server.port), timeout=60) as client:
                client.sendall(sent)
                assert _all_of(client) == b""
        wait_for(lambda: _is_answered(server))
    with serving(limits=Limits(body_seconds=0.2, drain_seconds=0)) as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=60) as client:
            client.sendall(_head("POST", CHAT, {"content-type": "application/json", "content-length": "10"}) + b"{")
            assert client.recv(10_000).startswith(b"HTTP/1.1 408")
        wait_for(lambda: _is_answered(server))


def _is_answered(server: Running) -> bool:
    """On a busy machine the test itself may be slower than these limits, once."""
    with contextlib.suppress(httpx.HTTPError):
        return ask(server).status_code == 200
    return False


def _all_of(client: socket.socket) -> bytes:
    try:
        return client.recv(10_000)
    except ConnectionResetError:
        return b""


def test_too_many_messages_or_choices_are_refused() -> None:
    with serving(limits=Limits(max_messages=3, max_concurrent=2, drain_seconds=0)) as server:
        assert ask(server, messages=HI * 3).status_code == 200
        assert ask(server, messages=HI * 4).json()["error"]["param"] == "messages"
        assert ask(server, n=2).status_code == 200
        assert ask(server, n=3).json()["error"]["param"] == "n"


def test_a_full_queue_is_a_429_and_the_others_get_their_turn() -> None:
    limits = Limits(max_concurrent=2, max_queue=2, drain_seconds=0)
    engine = ScriptedEngine(is_held=True)
    with serving(engine, limits=limits) as server:
        found: list[httpx.Response] = []
        threads = [threading.Thread(target=lambda: found.append(ask(server))) for _ in range(4)]
        for thread in threads:
            thread.start()
        wait_for(lambda: server.app.admission.num_waiting == 2)
        for stream in (False, True):
            response = ask(server, stream=stream)
            assert error_of(response) == (429, "queue_full")
            assert int(response.headers["retry-after"]) > 0
        engine.is_held = False
        for thread in threads:
            thread.join()
        assert [response.status_code for response in found] == [200] * 4
        assert engine.most_running == 2
        assert (server.app.admission.num_running, server.app.admission.num_waiting) == (0, 0)


def test_answers_that_take_too_long_end() -> None:
    limits = Limits(request_seconds=2.0, max_concurrent=2, drain_seconds=0)
    with serving(endless(), limits=limits) as server:
        found: dict[bool, httpx.Response] = {}
        threads = [
            threading.Thread(target=lambda stream=stream: found.update({stream: ask(server, stream=stream)}))
            for stream in (False, True)
        ]
        for thread in threads:
            thread.start()
        wait_for(lambda: server.engine.num_running == 2)
        assert error_of(ask(server)) in ((503, "timeout"), (504, "timeout"))  # waits, and has little time left then
        for thread in threads:
            thread.join()
        assert error_of(found[False]) == (504, "timeout")
        *events, last = events_of(found[True])
        assert json.loads(events[1])["choices"][0]["delta"]["content"] == "a"
        assert json.loads(last)["error"]["code"] == "timeout"  # and no `[DONE]`
        assert (server.engine.num_running, server.app.admission.num_running) == (0, 0)


def test_a_request_waits_in_the_queue_until_its_time_is_over() -> None:
    async def wait_twice() -> None:
        admission = Admission(max_concurrent=1, max_queue=1)
        async with admission.places(1, seconds=1):
            with pytest.raises(ApiError) as raised:
                async with admission.places(1, seconds=0.01):
                    pass
        assert (raised.value.status, raised.value.code) == (503, "timeout")
        assert (admission.num_running, admission.num_waiting) == (0, 0)

    asyncio.run(wait_twice())


# Who leaves


def leave(server: Running, **body: Any) -> None:
    """Begin a request and close its connection, without reading all of the answer."""
    data = json.dumps({"messages": HI, **body}).encode()
    headers = {"content-type": "application/json", "content-length": str(len(data))}
    client = socket.create_connection(("127.0.0.1", server.port), timeout=60)
    client.sendall(_head("POST", CHAT, headers) + data)
    if body.get("stream"):
        client.recv(10)
    else:
        wait_for(lambda: server.engine.num_running > 0)
    client.close()


async def not_watched(receive: Receive, work: Coroutine[Any, Any, Any], *, seconds: float) -> Any:
    return await work


@pytest.mark.parametrize("body", [{"stream": True}, {"stream": True, "n": 3}, {}, {"n": 3}], ids=str)
def test_the_engine_is_free_when_a_client_has_left(body: dict[str, Any]) -> None:
    with serving(endless()) as server:
        for _ in range(3):
            leave(server, **body)
            wait_for(lambda: server.engine.num_running == 0)
        assert server.engine.num_closed == 3 * body.get("n", 1)
        wait_for(lambda: server.app.traffic.num_requests == 0)
        assert server.app.admission.num_running == 0
        assert 'finish="cancelled"' in server.client.get("/metrics").text


def test_without_watching_the_engine_is_not_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control of the test before."""
    monkeypatch.setattr(chat, "unless_left", not_watched)
    with serving(endless()) as server:
        leave(server)
        for _ in range(5):  # time for whatever would end it
            assert server.client.get("/health").status_code == 200
        assert server.engine.num_running == 1


def test_a_client_that_leaves_the_queue_gives_its_place_to_the_next() -> None:
    limits = Limits(max_concurrent=1, max_queue=5, drain_seconds=0)
    with serving(endless(), limits=limits) as server:
        running = socket.create_connection(("127.0.0.1", server.port), timeout=60)
        data = json.dumps({"messages": HI}).encode()
        head = _head("POST", CHAT, {"content-type": "application/json", "content-length": str(len(data))})
        running.sendall(head + data)
        wait_for(lambda: server.engine.num_running == 1)
        waiting = [socket.create_connection(("127.0.0.1", server.port), timeout=60) for _ in range(3)]
        for client in waiting:
            client.sendall(head + data)
        wait_for(lambda: server.app.admission.num_waiting == 3)
        waiting[0].close()
        waiting[1].close()
        wait_for(lambda: server.app.admission.num_waiting == 1)
        running.close()
        wait_for(lambda: server.app.admission.num_waiting == 0)
        wait_for(lambda: len(server.engine.asked) == 2)
        waiting[2].close()
        wait_for(lambda: server.app.admission.num_running == 0)
        assert len(server.engine.asked) == 2  # those who left were never computed


def test_two_hundred_clients_that_leave_leave_nothing_behind() -> None:
    limits = Limits(max_concurrent=16, max_queue=300, drain_seconds=0)
    with serving(endless(), limits=limits) as server:
        data = json.dumps({"messages": HI, "stream": True}).encode()
        head = _head("POST", CHAT, {"content-type": "application/json", "content-length": str(len(data))})
        clients = [socket.create_connection(("127.0.0.1", server.port), timeout=60) for _ in range(200)]
        for client in clients:
            client.sendall(head + data)
        wait_for(lambda: server.app.admission.num_waiting > 100)
        for client in clients:
            client.close()
        wait_for(lambda: server.app.traffic.num_requests == 0)
        assert server.engine.num_running == server.app.admission.num_running == server.app.admission.num_waiting == 0
        assert server.engine.most_running == 16


def test_an_engine_that_is_not_there_is_a_503() -> None:
    failures: list[tuple[Exception, int, str]] = [
        (EngineUnavailable("secret cause"), 503, "engine_unavailable"),
        (EngineBusy("secret cause"), 429, "queue_full"),
        (EngineError("secret cause"), 500, "engine_failed"),
        (EngineRefused("secret cause"), 500, "engine_failed"),
    ]
    engine = ScriptedEngine()
    with serving(engine) as server:
        for failure, status, code in failures:
            engine.failure, engine.fails_after = failure, 0
            for stream in (False, True):
                response = ask(server, stream=stream)
                assert error_of(response) == (status, code)
                assert "secret" not in response.text
                assert status == 500 or int(response.headers["retry-after"]) > 0
        for failure, status in ((EngineRefused("secret cause"), 400), (EngineError("secret cause"), 500)):
            engine.failure = failure
            for stream in (False, True):  # only the engine knows what a schema may hold
                response = ask(server, stream=stream, response_format={"type": "json_object"})
                assert response.status_code == status
                assert response.json()["error"]["param"] == ("response_format" if status == 400 else None)
                assert "secret" not in response.text
        engine.fails_after = 1
        assert error_of(ask(server)) == (500, "engine_failed")
        *events, last = events_of(ask(server, stream=True))
        assert json.loads(events[1])["choices"][0]["delta"]["content"] == "Hel"
        assert json.loads(last)["error"]["code"] == "engine_failed"
        assert "[DONE]" not in events
        assert server.client.get("/health").status_code == 200
        engine.ready = False
        assert error_of(ask(server)) == (503, "engine_unavailable")
        assert server.client.get("/health").status_code == 503
        assert "ochat_engine_ready 0.0" in server.client.get("/metrics").text
        engine.ready, engine.failure = True, None
        assert ask(server).status_code == 200


def test_the_first_signal_lets_answers_finish_and_refuses_new_ones() -> None:
    limits = Limits(drain_seconds=60)
    engine = ScriptedEngine(is_held=True)
    with serving(engine, limits=limits) as server:
        found: list[httpx.Response] = []
        thread = threading.Thread(target=lambda: found.append(ask(server, stream=True)))
        thread.start()
        wait_for(lambda: engine.num_running == 1)
        server.end()
        assert error_of(ask(server)) == (503, "draining")
        assert server.client.get("/health").status_code == 503
        engine.is_held = False
        thread.join()
        assert events_of(found[0])[-1] == "[DONE]"
        server.thread.join(timeout=60)
        assert not server.thread.is_alive()
        assert engine.is_closed


@pytest.mark.parametrize("second", [True, False], ids=["second signal", "end of the time"])
def test_what_does_not_finish_is_ended(second: bool, capsys: pytest.CaptureFixture[str]) -> None:
    engine = endless()
    with serving(engine, limits=Limits(drain_seconds=30 if second else 0.1)) as server:
        leaving = threading.Thread(target=lambda: _ignoring(lambda: ask(server)))
        leaving.start()
        wait_for(lambda: engine.num_running == 1)
        server.end()
        if second:
            server.end()
        server.thread.join(timeout=60)
        assert not server.thread.is_alive()
        leaving.join()
        assert (engine.num_running, engine.is_closed) == (0, True)
    said = capsys.readouterr().err
    assert "ended 1 request before the answer was complete" in said
    assert "Traceback" not in said


def _ignoring(work: Callable[[], Any]) -> None:
    with contextlib.suppress(httpx.HTTPError):
        work()


# The log


def test_the_log_has_a_line_for_each_request_without_texts_and_keys(tmp_path: Path) -> None:
    file = tmp_path / "logs" / "ochat.log"
    with serving(keys=Keys([KEY]), log=RequestLog(file=file, prints=False)) as server:
        server.client.headers["authorization"] = f"Bearer {KEY}"
        requests: list[Callable[[], Any]] = [
            lambda: ask(server, condition="GPT3"),
            lambda: ask(server, stream=True),
            lambda: ask(server, stream="no"),
            lambda: server.client.get(f"/secret-path-{KEY}?key={KEY}"),
            lambda: server.client.get("/metrics"),
        ]
        for number, request in enumerate(requests, start=1):
            response = request()
            wait_for(lambda n=number: file.read_text().count("\n") == n)  # a line is written behind its response
        text_of_metrics = response.text
    text = file.read_text()
    rows = [json.loads(line) for line in text.splitlines()]
    assert [(row["route"], row["status"]) for row in rows] == [
        (CHAT, 200),
        (CHAT, 200),
        (CHAT, 400),
        ("unknown", 404),
        ("/metrics", 200),
    ]
    assert (rows[0]["condition"], rows[0]["answer_tokens"], rows[0]["finish"]) == ("GPT3", 3, ["stop"])
    assert rows[0]["seconds"] >= rows[0]["seconds_to_first_token"] > 0
    assert rows[2]["error"] == "invalid_value"
    for secret in (KEY, "secret-path", "Hi", "Hello"):
        assert secret not in text
        assert secret not in text_of_metrics
    assert file.stat().st_mode & 0o077 == 0


def test_texts_are_logged_only_where_that_is_said(tmp_path: Path) -> None:
    file = tmp_path / "ochat.log"
    with serving(log=RequestLog(file=file, prints=False, with_texts=True)) as server:
        ask(server)
        ask(server, stream=True)
        wait_for(lambda: file.read_text().count("\n") == 2)
    for line in file.read_text().splitlines():
        assert json.loads(line)["texts"] == {"messages": HI, "answers": ["Hello there"]}


def test_a_log_that_cannot_be_written_ends_no_request(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    link = tmp_path / "ochat.log"
    link.symlink_to("/dev/full")
    with serving(log=RequestLog(file=link, prints=False)) as server:
        assert [ask(server).status_code for _ in range(3)] == [200] * 3
    assert capsys.readouterr().err.count("cannot be written") == 1
    with pytest.raises(UserError, match="--log-file"):
        RequestLog(file=tmp_path / "ochat.log" / "below", prints=False)


def test_a_log_that_is_moved_or_removed_is_begun_again(tmp_path: Path) -> None:
    """As logrotate does it, and by another server with the same file; closing on a full disk is no error."""
    file = tmp_path / "logs" / "ochat.log"
    log, other = (RequestLog(file=file, prints=False) for _ in range(2))

    def write(*logs: RequestLog) -> None:
        for number, one in enumerate(logs):
            one.write(RequestRecord(id=f"req-{number}", time="now", method="GET"))

    write(log, other)
    file.rename(tmp_path / "old")
    write(log, other, log)
    assert [len(path.read_text().splitlines()) for path in (tmp_path / "old", file)] == [2, 3]
    assert file.stat().st_mode & 0o077 == 0
    file.unlink()
    file.parent.rmdir()
    write(log)
    assert len(file.read_text().splitlines()) == 1
    file.unlink()
    file.symlink_to("/dev/full")
    write(log)
    for one in (log, other):
        one.close()


def test_lines_for_people_have_no_texts(capsys: pytest.CaptureFixture[str]) -> None:
    with serving(log=RequestLog(file=None, prints=True)) as server:
        ask(server, condition="GPT3")
        server.client.get("/health")
        wait_for(lambda: server.app.traffic.num_requests == 0)
    lines = [line for line in capsys.readouterr().err.splitlines() if "/" in line]
    assert len(lines) == 1
    assert f"POST {CHAT} 200" in lines[0]
    assert "'GPT3'" in lines[0]
    assert "Hello" not in lines[0]
