"""Malformed requests from a seed get errors and never a 5xx, and the check itself finds a server that breaks."""

from __future__ import annotations

import asyncio

from benchmarks.malformed_requests import malformed_requests
from benchmarks.serve_faults import ask_malformed
from ochat_train.serving.settings import Limits
from tests.support.scripted_engine import ScriptedEngine, serving

LIMITS = Limits(body_seconds=0.3, header_seconds=0.3)


def test_no_malformed_request_is_a_fault_of_the_server() -> None:
    with serving(limits=LIMITS) as server:
        result = asyncio.run(ask_malformed(server.port, number=44, seed=1))
    assert result.broken == []
    assert "5xx" not in result.found
    assert "4xx" in result.found


def test_the_check_finds_a_fault() -> None:
    with serving(ScriptedEngine(failure=RuntimeError("planted")), limits=LIMITS) as server:
        result = asyncio.run(ask_malformed(server.port, number=0, seed=1))
    [broken] = result.broken
    assert "500" in broken


def test_one_seed_gives_the_same_requests() -> None:
    first, again, other = (malformed_requests(44, seed=seed, host="localhost:1") for seed in (1, 1, 2))
    assert first == again != other
    assert len({request.kind for request in first}) == 11
