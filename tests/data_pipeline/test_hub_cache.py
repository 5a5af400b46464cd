"""Without a network, the Hub is not asked again and again."""

from __future__ import annotations

import socket
from typing import Any

import pytest
from huggingface_hub import constants, is_offline_mode

from data_pipeline import hub_cache
from data_pipeline.hub_cache import offline_without_network


@pytest.fixture
def lookups(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names that were looked up; none is known."""
    asked: list[str] = []

    def unknown(host: str, *more: Any) -> None:
        asked.append(host)
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    monkeypatch.setattr(hub_cache, "_PAUSE_SECONDS", 0.0)
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


def test_with_a_network_nothing_changes(lookups: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *more: [])
    with offline_without_network():
        assert not is_offline_mode()


def test_behind_a_proxy_nothing_is_looked_up(lookups: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://proxy.invalid:1")
    with offline_without_network():
        assert not is_offline_mode()
    assert lookups == []
