"""The engine behind an address: it must have the same model, and its faults are ours to tell apart."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from data_pipeline.errors import UserError
from ochat_train.inference import completions, remote, streams
from ochat_train.inference.answers import whole_answer
from ochat_train.inference.engine import AnswerSettings, EngineBusy, EngineError, EngineRefused, EngineUnavailable
from ochat_train.inference.remote import KEY_VARIABLE, RemoteEngine
from ochat_train.inference.served_model import ServedModel, load_served_model
from tests.support.tiny_export import write_tiny_export
from tests.support.tokenizers import write_small_tokenizer
from tests.support.vllm_stand_in import make_app, parsed
from tests.support.waiting import wait_for

LONG = AnswerSettings(max_new_tokens=200)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, small_tokenizer_dir: Path) -> ServedModel:
    folder = tmp_path_factory.mktemp("export")
    return load_served_model(write_tiny_export(folder, small_tokenizer_dir))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(completions, "_RETRY_SECONDS", (0.01, 0.02))
    monkeypatch.setattr(remote, "_WATCH_SECONDS", 0.05)
    monkeypatch.delenv(KEY_VARIABLE, raising=False)


@pytest.fixture(params=["httpx", "aiohttp"])
def by(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The package that streams come through."""
    if request.param == "aiohttp":
        pytest.importorskip("aiohttp", reason="the extra `serve` is not installed")
    monkeypatch.setattr(streams, "installed_version", {request.param: "1"}.get)
    return str(request.param)


@contextmanager
def server(folder: Path, *flags: str) -> Iterator[str]:
    """The address of a stand-in in a thread of this process."""
    app = make_app(parsed(["--model", str(folder), "--served-model-name", "theirs", *flags]))
    listening = socket.create_server(("127.0.0.1", 0))
    running = uvicorn.Server(uvicorn.Config(app, log_level="critical"))
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    wait_for(lambda: running.started)
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        running.should_exit = running.force_exit = True
        thread.join(60)


@asynccontextmanager
async def started(served: ServedModel, url: str, **options: Any) -> AsyncIterator[RemoteEngine]:
    engine = RemoteEngine(served, url, model=options.get("model"), say=options.get("say", lambda line: None))
    await engine.start()
    try:
        yield engine
    finally:
        await engine.close()


def run(task: Callable[[], Any]) -> Any:
    return asyncio.run(asyncio.wait_for(task(), 300))


def facts(url: str) -> dict[str, Any]:
    return dict(httpx.get(f"{url}/facts", trust_env=False).json())


@pytest.mark.parametrize("flags", [(), ("--without-ids",)], ids=["ids", "text"])
def test_answers_of_servers_with_and_without_ids_are_the_same(
    served: ServedModel, flags: tuple[str, ...], by: str
) -> None:
    """Text, lengths, stop texts; the answers have bytes that are parts of characters."""

    async def task(url: str) -> None:
        async with started(served, f"{url}/v1/") as engine:
            assert engine._client is not None
            assert engine._client.sends_ids == (not flags)
            assert by in type(engine._client._streams).__name__.lower()
            ids = served.prompt_ids([{"role": "user", "content": "x"}], condition="GPT3")
            answer = await whole_answer(engine.stream(ids, AnswerSettings(max_new_tokens=30, num_logprobs=2)))
            assert answer.num_tokens == len(answer.logprobs) == 30
            assert answer.finish == "length"
            body = facts(url)["bodies"][-1]
            assert body["prompt"] == ids
            names = ("temperature", "top_p", "max_tokens", "top_k", "min_p", "repetition_penalty")
            assert {name: body[name] for name in names} == {
                "temperature": 0.0,
                "top_p": 1.0,
                "max_tokens": 30,
                **{"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0},  # llama.cpp has other defaults
            }
            bare = await whole_answer(engine.stream(ids, AnswerSettings(max_new_tokens=3, num_logprobs=0)))
            if not flags:
                assert {len(row.alternatives) for row in bare.logprobs} == {0}, "as many as asked for"
            texts.append(answer.text)
            stop = answer.text[5:7]
            stopped = await whole_answer(engine.stream(ids, AnswerSettings(max_new_tokens=30, stop=(stop,))))
            assert (stopped.text, stopped.finish) == (answer.text[: answer.text.index(stop)], "stop")
            seeded = AnswerSettings(
                max_new_tokens=1, temperature=0.5, seed=2**64 + 3, response_format={"type": "json_object"}
            )
            await whole_answer(engine.stream(ids, seeded))
            body = facts(url)["bodies"][-1]
            assert (body["seed"], body["response_format"]) == (3, {"type": "json_object"})

    texts: list[str] = []
    for one in ((), flags):
        with server(served.folder, *one) as url:
            run(lambda url=url: task(url)) if one == flags else run(lambda url=url: answer_only(served, url, texts))
    assert len(texts) == 2
    assert texts[0] == texts[1]
    assert texts[0]


async def answer_only(served: ServedModel, url: str, texts: list[str]) -> None:
    async with started(served, url) as engine:
        ids = served.prompt_ids([{"role": "user", "content": "x"}], condition="GPT3")
        texts.append((await whole_answer(engine.stream(ids, AnswerSettings(max_new_tokens=30)))).text)


def test_a_proxy_of_the_environment_is_not_asked_for_this_machine(
    served: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under all of its names: the proxy would also get the key. The control is a name of another machine."""
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)

    async def is_asked(host: str) -> bool:
        client = completions.CompletionsClient(
            completions.Server(url=f"http://{host}:8000"), served.tokenizer, stop_ids=(1,)
        )
        transport = client._http._transport_for_url(httpx.URL(f"http://{host}:8000/v1/models"))
        await client.close()
        return transport is not client._http._transport

    hosts = ("localhost", "LOCALHOST", "127.0.0.1", "[::1]", "example.com", "127.0.0.1.example.com")
    assert [run(lambda host=host: is_asked(host)) for host in hosts] == [False, False, False, False, True, True]


def test_another_model_is_refused(served: ServedModel, tmp_path: Path) -> None:
    """By its tokenizer; the control is the same tokenizer, above."""
    from ochat_train.quickstart.make import write_tokenizer

    write_tokenizer(tmp_path / "tokenizer", ["quick brown fox " * 3, "lazy dogs over " * 3] * 20, vocab_size=330)
    other = write_tiny_export(tmp_path / "other", tmp_path / "tokenizer")
    same = write_tiny_export(tmp_path / "same", write_small_tokenizer(tmp_path / "again"))

    async def task(url: str) -> None:
        async with started(served, url):
            pass

    with server(other) as url, pytest.raises(UserError, match="another tokenizer"):
        run(lambda: task(url))
    with server(same) as url:
        run(lambda: task(url))
    with server(served.folder, "--with-bos") as url, pytest.raises(UserError, match="take ids as they are"):
        run(lambda: task(url))


def test_the_model_is_chosen_by_its_name(served: ServedModel) -> None:
    async def task(url: str, model: str | None) -> None:
        async with started(served, url, model=model) as engine:
            await whole_answer(engine.stream([5], AnswerSettings(max_new_tokens=1)))
            assert engine.context_tokens == 100, "the server takes less than the model"

    flags = ("--lora-modules", "one=x", "--max-model-len", "100")
    with server(served.folder, *flags) as url:
        with pytest.raises(UserError, match="2 models: 'theirs', 'one'"):
            run(lambda: task(url, None))
        with pytest.raises(UserError, match="is not there"):
            run(lambda: task(url, "two"))
        run(lambda: task(url, "one"))
        assert facts(url)["bodies"][-1]["model"] == "one"


def test_the_key_is_read_from_the_environment(served: ServedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    async def task(url: str) -> None:
        async with started(served, url) as engine:
            assert engine.is_ready()

    monkeypatch.setenv("VLLM_API_KEY", "sk-right")
    with server(served.folder) as url:
        for key in (None, "sk-wrong"):
            if key:
                monkeypatch.setenv(KEY_VARIABLE, key)
            with pytest.raises(UserError, match=KEY_VARIABLE) as caught:
                run(lambda: task(url))
            assert "sk-" not in str(caught.value)
        monkeypatch.setenv(KEY_VARIABLE, "sk-right")
        run(lambda: task(url))


def test_no_server_and_no_such_server_are_refused(served: ServedModel) -> None:
    async def task(url: str) -> None:
        async with started(served, url):
            pass

    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(UserError, match="is an OpenAI-compatible server running there"):
        run(lambda: task(f"http://127.0.0.1:{port}"))
    with server(served.folder) as url, pytest.raises(UserError, match="404"):
        run(lambda: task(f"{url}/elsewhere"))


@pytest.mark.parametrize(
    ("flags", "kind", "words", "num_asked"),
    [
        (("--break-after", "3"), EngineUnavailable, "connection broke|ended the answer early", 1),
        (("--break-after", "0"), EngineUnavailable, "early|broke", 1),
        (("--break-after", "3", "--break-with", "500"), EngineUnavailable, "500: planted in a stream", 1),
        (("--break-after", "0", "--break-with", "400"), EngineRefused, "400: planted in a stream", 1),
        (("--refuse-with", "429"), EngineBusy, "not now", 1),
        (("--refuse-with", "503"), EngineUnavailable, "not now", 1),
        (("--refuse-with", "400"), EngineRefused, "not now", 1),
    ],
)
def test_faults_are_told_apart_and_nothing_is_asked_twice(
    flags: tuple[str, ...], kind: type[EngineError], words: str, num_asked: int, served: ServedModel, by: str
) -> None:
    """The server has begun to answer, or has refused: only a connection that could not be made is tried again."""

    async def task(url: str) -> None:
        async with started(served, url) as engine:
            before = facts(url)["asked"]
            with pytest.raises(kind, match=words) as caught:
                await whole_answer(engine.stream([5, 6], AnswerSettings(max_new_tokens=9)))
            assert type(caught.value) is kind
            assert "{" not in str(caught.value), "nothing of its JSON"
            assert facts(url)["asked"] - before == num_asked

    with server(served.folder, *flags) as url:
        run(lambda: task(url))


def test_an_answer_that_nobody_reads_ends_at_the_server(served: ServedModel, by: str) -> None:
    async def task(url: str) -> None:
        async with started(served, url) as engine, aclosing(engine.stream([5], LONG)) as pieces:  # type: ignore[type-var]
            await anext(pieces)
            assert (await asyncio.to_thread(facts, url))["running"] == 1
            await pieces.aclose()  # type: ignore[attr-defined]
            await asyncio.to_thread(wait_for, lambda: not facts(url)["running"])
            assert (await asyncio.to_thread(facts, url))["aborted"] == 1

    with server(served.folder) as url:
        run(lambda: task(url))


@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_events_are_read_however_they_are_cut(size: int) -> None:
    """Also a character that other readers take for the end of a line."""
    values = [{"text": "a"}, {"text": "\u2028 \u00e9"}, {"text": "b"}]
    lines = [f"data: {json.dumps(value, ensure_ascii=False)}\r\n\r\n" for value in values]
    data = (": comment\n" + "".join(lines) + "data:[DONE]\n\ndata: never read\n").encode()

    maker = completions._TextPieces(AnswerSettings(max_new_tokens=9))
    reader = completions._EventReader(maker, joins=False)
    chunks = [data[start : start + size] for start in range(0, len(data), size)]
    found: list[Any] = []
    for chunk in chunks:
        found += reader.events(chunk)
        if reader.is_done:
            break
    assert found == values
    assert reader.is_done


def test_an_answer_that_waits_to_be_asked_again_ends_with_the_engine(
    served: ServedModel, by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library's own error, that its session is closed, is none that anybody expects."""
    monkeypatch.setattr(completions, "_RETRY_SECONDS", (60.0,))

    async def task() -> None:
        waits = asyncio.Event()

        async def sleep(seconds: float) -> None:
            waits.set()
            await closed.wait()

        closed = asyncio.Event()
        monkeypatch.setattr(completions.asyncio, "sleep", sleep)
        client = completions.CompletionsClient(
            streams.Server(url="http://vllm", socket="/nowhere/socket"), served.tokenizer, stop_ids=(2,)
        )
        asking = asyncio.ensure_future(whole_answer(client.stream([5], AnswerSettings(max_new_tokens=1), model="m")))
        await waits.wait()
        await client.close()
        closed.set()
        with pytest.raises(EngineUnavailable, match="were ended"):
            await asking

    run(task)


def test_a_server_that_goes_and_comes_back_is_noticed(served: ServedModel) -> None:
    said: list[str] = []

    async def task() -> None:
        with server(served.folder) as url:
            engine = RemoteEngine(served, url, model=None, say=said.append)
            await engine.start()
        await asyncio.to_thread(wait_for, lambda: not engine.is_ready())
        with pytest.raises(EngineUnavailable):
            await whole_answer(engine.stream([5], AnswerSettings(max_new_tokens=1)))
        await engine.close()
        await engine.close()

    run(task)
    assert any("does not answer" in line for line in said)
