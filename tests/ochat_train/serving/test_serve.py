"""`ochat serve` from its options to its end by a signal."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from packaging.requirements import Requirement

from data_pipeline.errors import UserError
from ochat_train.cli.engine_arguments import engine_options
from ochat_train.cli.main import VERBS, main
from ochat_train.cli.parser import parse
from ochat_train.distributed.launch import free_port
from ochat_train.inference.choose import EngineOptions
from ochat_train.inference.served_model import ServedModel
from ochat_train.serving import installed, serve
from ochat_train.serving import server as server_module
from ochat_train.serving.app import make_app
from ochat_train.serving.keys import Keys
from ochat_train.serving.serve import ServeOptions
from ochat_train.serving.settings import Limits
from ochat_train.system import exits
from tests.support.processes import ROOT
from tests.support.scripted_engine import CONDITIONS, ScriptedEngine, offered, tokenizer_of
from tests.support.waiting import wait_for

HI = [{"role": "user", "content": "Hi"}]
KEYS = Keys(["sk-1"])


@pytest.fixture
def served(tmp_path: Path) -> ServedModel:
    return ServedModel(
        folder=tmp_path,
        name="small",
        base=None,
        tokenizer=tokenizer_of(),
        conditions=CONDITIONS,
        default_condition=CONDITIONS[0],
        context_tokens=256,
        stop_ids=(1,),
    )


@pytest.fixture
def hang_up() -> Iterator[None]:
    """SIGHUP as in a terminal, also where the tests run under `nohup`."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("hang_up")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_it_after_what_is_running(
    number: signal.Signals, served: ServedModel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    engine, port = ScriptedEngine(is_held=True), free_port()
    monkeypatch.setattr(serve, "make_engine", lambda *arguments, say: engine)
    found: list[httpx.Response] = []
    url = f"http://localhost:{port}"

    def post() -> None:
        found.append(httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60))

    def ask() -> None:
        wait_for(lambda: _answers(f"{url}/health"))
        thread = threading.Thread(target=post)
        thread.start()
        wait_for(lambda: engine.num_running == 1)
        os.kill(os.getpid(), number)
        wait_for(lambda: not _answers(f"{url}/health"))  # it drains
        engine.is_held = False
        thread.join()

    body = {"messages": HI}
    asking = threading.Thread(target=ask)
    before = signal.getsignal(number)
    asking.start()
    serve.serve(served, EngineOptions(), ServeOptions(port=port, limits=Limits(drain_seconds=60)))
    asking.join()
    assert found[0].json()["choices"][0]["message"]["content"] == "Hello there"
    assert engine.is_closed
    assert signal.getsignal(number) is before
    assert f"serving at {url} (without a key)" in capsys.readouterr().err


def test_the_address_is_said_once_it_can_be_reached(served: ServedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()

    class Reached(Exception):
        pass

    def connect(text: str) -> None:
        if text.startswith("serving at"):
            socket.create_connection(("localhost", port), timeout=60).close()
            raise Reached

    monkeypatch.setattr(serve, "make_engine", lambda *arguments, say: ScriptedEngine())
    monkeypatch.setattr(serve, "print_message", connect)
    with pytest.raises(Reached):
        serve.serve(served, EngineOptions(), ServeOptions(port=port))


@pytest.mark.usefixtures("hang_up")
def test_the_end_of_the_terminal_is_taken_once_and_can_be_outlived() -> None:
    """A terminal that ends may send the signal twice, and the second one of another kind ends at once."""
    app = make_app(ScriptedEngine(), [offered()])
    server = server_module._Server(app, Limits())
    with server.capture_signals():
        for _ in range(2):
            signal.raise_signal(signal.SIGHUP)
        assert app.traffic.is_draining
        assert not server.should_exit
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    server = server_module._Server(app, Limits())
    with server.capture_signals():
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def _answers(url: str) -> bool:
    try:
        return httpx.get(url).status_code == 200
    except httpx.HTTPError:
        return False


def test_an_engine_that_does_not_start_leaves_nothing(served: ServedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, port = ScriptedEngine(), free_port()

    async def fail() -> None:
        raise UserError("vllm", "is not there")

    monkeypatch.setattr(engine, "start", fail)
    monkeypatch.setattr(serve, "make_engine", lambda *arguments, say: engine)
    with pytest.raises(UserError, match="is not there"):
        serve.serve(served, EngineOptions(), ServeOptions(port=port))
    assert engine.is_closed
    with socket.socket() as one:  # the port is free again
        one.bind(("127.0.0.1", port))


def test_other_machines_need_keys() -> None:
    for host in ("0.0.0.0", "::", "192.0.2.1"):
        with pytest.raises(UserError, match="without a key"):
            serve.check_exposure(ServeOptions(host=host), Keys())
        serve.check_exposure(ServeOptions(host=host), KEYS)
        serve.check_exposure(ServeOptions(host=host, allow_no_keys=True), Keys())
    for host in ("localhost", "127.0.0.1", "::1"):
        serve.check_exposure(ServeOptions(host=host), Keys())


def test_hosts_are_checked_unless_there_are_keys() -> None:
    local = {"localhost", "127.0.0.1", "[::1]"}
    assert serve.allowed_hosts(ServeOptions(), Keys()) == local
    assert serve.allowed_hosts(ServeOptions(allow_hosts=["Chat.example"]), Keys()) == {*local, "chat.example"}
    assert serve.allowed_hosts(ServeOptions(), KEYS) is None
    assert serve.allowed_hosts(ServeOptions(host="0.0.0.0", allow_no_keys=True), Keys()) is None
    assert serve.allowed_hosts(ServeOptions(allow_no_keys=True), Keys()) == local


def test_what_others_may_read_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "keys"
    file.write_text("sk-file-1\n")
    for mode, is_said in ((0o600, False), (0o640, True), (0o604, True)):
        file.chmod(mode)
        assert len(serve.keys_of(ServeOptions(api_keys_file=file), {})) == 1
        assert ("can read" in capsys.readouterr().err) == is_said
    assert len(serve.keys_of(ServeOptions(api_keys=["sk-1", "sk-2"]), {})) == 2
    text = capsys.readouterr().err
    assert "list of processes" in text
    assert "sk-" not in text


def test_texts_are_only_logged_to_a_file(served: ServedModel) -> None:
    with pytest.raises(UserError, match="--log-file"):
        serve.serve(served, EngineOptions(), ServeOptions(log_texts=True))


def test_the_cards_options_are_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The card's flags, and those of vLLM after `--` wherever they are."""
    seen: list[Any] = []
    monkeypatch.setattr(serve, "serve", lambda *arguments: seen.append(arguments))
    monkeypatch.setattr("ochat_train.cli.serve.served_model", lambda *arguments, name: name)
    log = tmp_path / "openchat.log"
    keys = ["--api-keys", "sk-KEY1", "sk-KEY2", "--disable-log-requests", "--disable-log-stats"]
    command = ["serve", "export", *keys, "--log-file", str(log), "--tensor-parallel-size", "2", "--engine", "vllm"]
    assert main([*command, "--", "--quantization", "fp8"]) == 0
    [(name, engine, options)] = seen
    assert name is None
    assert engine == EngineOptions(kind="vllm", vllm_flags=("--tensor-parallel-size", "2", "--quantization", "fp8"))
    assert options == ServeOptions(api_keys=("sk-KEY1", "sk-KEY2"), log_file=log, log_requests=False, log_stats=False)
    assert not log.exists()  # `ochat` writes its command line into other logs, and here that would hold the keys


def test_flags_of_vllm_follow_two_dashes() -> None:
    for command in (["--", "--x", "2"], ["--engine", "vllm", "--", "--x", "2"], ["--port", "1", "--", "--x", "2"]):
        assert engine_options(parse(VERBS, ["serve", "export", *command])).vllm_flags == ("--x", "2")
    assert engine_options(parse(VERBS, ["serve", "export", "--engine", "vllm"])).vllm_flags == ()
    with pytest.raises(SystemExit):
        parse(VERBS, ["serve", "export", "--x", "2"])
    with pytest.raises(SystemExit):
        parse(VERBS, ["generate", "export", "--prompt", "x", "--", "--x"])


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    extra = [Requirement(text) for text in extras["serve"]]
    assert {need.name: str(need.specifier) for need in extra} == installed.NEEDED | installed.FASTER
    installed.require_serving()
    found: Callable[[str], str | None] = {"starlette": "1.0", "uvicorn": "0.1", "httpx": "0.28"}.get
    monkeypatch.setattr(installed, "installed_version", found)
    with pytest.raises(UserError, match=r"uvicorn>=0.34, prometheus-client>=0.21"):
        installed.require_serving()


def test_a_server_that_is_slower_says_so_once(
    served: ServedModel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = ScriptedEngine()

    async def ask_to_stop() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(600)

    monkeypatch.setattr(serve, "make_engine", lambda *arguments, say: engine)
    monkeypatch.setattr(engine, "start", ask_to_stop)
    monkeypatch.setattr("ochat_train.cli.serve.served_model", lambda *arguments, name: served)
    for missing, notes in (({}, []), ({"uvloop", "aiohttp"}, ["aiohttp, uvloop"])):
        is_there = {name: None if name in missing else "99" for name in installed.NEEDED | installed.FASTER}
        monkeypatch.setattr(installed, "installed_version", is_there.get)
        engine.is_closed = False
        assert main(["serve", "export", "--port", "0"]) == exits.STOPPED  # a signal while the engine starts
        assert engine.is_closed
        said = capsys.readouterr().err.splitlines()
        assert [line.partition(" without ")[2].partition(": ")[0] for line in said if line.startswith("note")] == notes
        assert said[-1] == "ochat serve: stopped by SIGTERM; start it again"
