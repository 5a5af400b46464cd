"""Without a network, the Hub is not asked again and again."""

from __future__ import annotations

import socket
import threading
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from huggingface_hub import constants, is_offline_mode

from data_pipeline import hub_cache
from data_pipeline.hub_cache import no_answer, offline_without_network


@pytest.fixture
def lookups(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names that were looked up; none is known."""
    asked: list[str] = []

    def unknown(host: str, *more: Any) -> None:
        asked.append(host)
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    monkeypatch.setattr(hub_cache, "_PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(hub_cache, "_found", {})
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "https://hub.invalid")
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return asked


def test_without_a_network_the_hub_is_offline_meanwhile(lookups: list[str]) -> None:
    with offline_without_network():
        assert is_offline_mode()
    assert not is_offline_mode()
    assert lookups == ["hub.invalid"] * 2  # a resolver may have been busy


def test_what_was_found_holds_for_a_while(lookups: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert [no_answer() for _ in range(3)] == ["Name or service not known"] * 3
    assert len(lookups) == 2
    monkeypatch.setattr(hub_cache, "_HOLDS_SECONDS", -1.0)
    no_answer()
    assert len(lookups) == 4


@pytest.fixture
def listening(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """A socket at the Hub's address that takes connections, and says nothing by itself."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub_cache, "_PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(hub_cache, "_found", {})
    monkeypatch.setattr(urllib.request, "getproxies", dict)
    with socket.create_server(("127.0.0.1", 0)) as one:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{one.getsockname()[1]}")
        yield one


def test_a_hub_that_says_nothing_is_not_waited_for(listening: socket.socket) -> None:
    assert no_answer(timeout_seconds=0.05) == "no answer within 0.05 s"
    with offline_without_network():
        assert is_offline_mode()


def test_a_hub_that_refuses_is_not_there(listening: socket.socket) -> None:
    listening.close()
    assert no_answer() == "Connection refused"


@pytest.mark.parametrize("answer", [b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.1 503 no\r\n\r\n", b"no HTTP\r\n\r\n"])
def test_any_answer_will_do(answer: bytes, listening: socket.socket) -> None:
    def serve() -> None:
        with listening.accept()[0] as connection:
            connection.recv(1000)
            connection.sendall(answer)

    thread = threading.Thread(target=serve)
    thread.start()
    with offline_without_network():
        assert not is_offline_mode()
    thread.join()


def test_behind_a_proxy_nothing_is_looked_up(lookups: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://proxy.invalid:1")
    with offline_without_network():
        assert not is_offline_mode()
    assert lookups == []
