"""The engine beside this process, against a server that takes vLLM's flags and speaks its API."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from data_pipeline.errors import UserError
from ochat_train.inference import choose, keeper, vllm
from ochat_train.inference.answers import whole_answer
from ochat_train.inference.choose import EngineOptions, make_engine
from ochat_train.inference.embedded import EmbeddedEngine
from ochat_train.inference.engine import AnswerSettings, EngineError, EngineUnavailable
from ochat_train.inference.generate import load_generator
from ochat_train.inference.load import load_model
from ochat_train.inference.served_model import ServedModel, load_served_model
from ochat_train.inference.vllm import VllmEngine
from ochat_train.inference.vllm_command import VllmPython, command_of, lora_rank, require_vllm
from tests.support.tiny_export import write_tiny_export
from tests.support.vllm_stand_in import VERSION, write_vllm
from tests.support.waiting import eventually

QUESTIONS = tuple(f"Question {number}: how are you? 日本" for number in range(6))
# A server of another program must not outlive the tests, whatever happens to them.
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="process groups and Unix sockets as on Linux")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, small_tokenizer_dir: Path) -> ServedModel:
    folder = tmp_path_factory.mktemp("export")
    return load_served_model(write_tiny_export(folder, small_tokenizer_dir, stop_ids=tuple(range(40, 60))))


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_vllm(tmp_path_factory.mktemp("vllm")))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm, "_WATCH_SECONDS", 0.03)
    monkeypatch.setattr(vllm, "_FIRST_WAIT_SECONDS", 0.05)


@asynccontextmanager
async def started(served: ServedModel, python: str, *flags: str, say: Any = lambda line: None) -> AsyncIterator[Any]:
    engine = make_engine(served, EngineOptions(vllm_python=python, vllm_flags=flags), say=say)
    assert isinstance(engine, VllmEngine)
    await engine.start()
    try:
        yield engine
    finally:
        await engine.close()


def run(task: Callable[[], Any]) -> Any:
    return asyncio.run(asyncio.wait_for(task(), 300))


def prompt(served: ServedModel, text: str) -> list[int]:
    return served.prompt_ids([{"role": "user", "content": text}], condition="GPT3")


async def facts(engine: VllmEngine) -> dict[str, Any]:
    assert engine._client is not None
    status, found = await engine._client.get("/facts")
    assert status == 200
    return dict(found)


async def equal(number: Callable[[], Awaitable[int]], wanted: int) -> bool:
    return await number() == wanted


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


def gone(*pids: int, seconds: float = 60.0) -> bool:
    deadline = time.monotonic() + seconds
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not any(map(alive, pids))


def test_answers_are_those_of_the_model(
    served: ServedModel, python: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Token for token as `generate`, whose answers the server gives to exactly these ids; its key is seen nowhere."""
    model, _ = load_model(served.folder)
    prompts = [prompt(served, text) for text in QUESTIONS]
    pairs = [
        (ids, model.generate(torch.tensor([ids]), max_new_tokens=20, do_sample=False)[0, len(ids) :].tolist())
        for ids in prompts
    ]
    (tmp_path / "answers.json").write_text(json.dumps(pairs))
    monkeypatch.setenv("STAND_IN_ANSWERS", str(tmp_path / "answers.json"))
    conversations = [[{"role": "user", "content": text}] for text in QUESTIONS]
    expected = load_generator(served.folder).answers(
        conversations, condition="GPT3", max_new_tokens=20, temperature=0.0
    )
    said: list[str] = []

    async def task() -> None:
        async with started(served, python, "--tensor-parallel-size", "2", say=said.append) as engine:
            settings = AnswerSettings(max_new_tokens=20, num_logprobs=2)
            asked = [engine.stream(prompt(served, text), settings) for text in QUESTIONS]
            answers = await asyncio.gather(*map(whole_answer, asked))
            assert [answer.text for answer in answers] == expected
            assert {answer.finish for answer in answers} == {"stop", "length"}
            for answer in answers:
                assert len(answer.logprobs) == answer.num_tokens - (answer.finish == "stop")
                assert {row.logprob for row in answer.logprobs} == {-0.25}
            found = await facts(engine)
            bodies = [body for body in found["bodies"] if body["stream"]]
            assert sorted(body["prompt"] for body in bodies) == sorted(prompts)
            assert bodies[0]["stop_token_ids"] == list(served.stop_ids)
            arguments = " ".join(found["arguments"])
            assert "--tensor-parallel-size 2" in arguments
            assert "--generation-config vllm" in arguments
            assert f"--served-model-name {served.name}" in arguments
            key = engine._client._server.key
            assert found["has_key"]
            assert key not in arguments + "".join(said) + engine._log.read_text()
            assert oct(engine._folder.stat().st_mode)[-3:] == "700"
            assert engine.versions == {"vllm": VERSION}
            folder = engine._folder
        assert gone(found["pid"], found["worker"]), "its processes end with it"
        assert not folder.exists()
        assert not engine.is_ready()
        with pytest.raises(EngineUnavailable):
            await whole_answer(engine.stream([1], AnswerSettings(max_new_tokens=1)))

    run(task)


def test_an_answer_that_nobody_reads_any_more_is_ended_there(served: ServedModel, python: str) -> None:
    async def task() -> None:
        async with started(served, python) as engine:
            ids = prompt(served, "x")
            long = AnswerSettings(max_new_tokens=served.context_tokens - len(ids))
            object.__setattr__(engine._client, "_stop_ids", ())
            async with aclosing(engine.stream(ids, long)) as pieces:
                first = await anext(pieces)
                assert first.finish is None
            text = (await whole_answer(engine.stream(ids, AnswerSettings(max_new_tokens=12)))).text
            stop = text[len(text) // 2 :][:2]
            stopped = await whole_answer(engine.stream(ids, AnswerSettings(max_new_tokens=200, stop=(stop,))))
            assert stopped.text == text[: text.index(stop)]
            tasks = [asyncio.create_task(whole_answer(engine.stream(ids, long))) for _ in range(5)]

            async def num_running() -> int:
                return int((await facts(engine))["running"])

            await eventually(lambda: equal(num_running, 5))  # the control: they run
            for one in tasks:
                one.cancel()
            await eventually(lambda: equal(num_running, 0))
            found = await facts(engine)
            assert (found["running"], found["aborted"], found["finished"]) == (0, 7, 1)

    run(task)


def test_a_server_that_dies_is_started_again(served: ServedModel, python: str) -> None:
    """Killed in the middle of an answer: the answer fails, the engine is not ready, then it answers again."""
    said: list[str] = []

    async def task() -> None:
        async with started(served, python, say=said.append) as engine:
            before = await facts(engine)
            ids = prompt(served, "x")
            long = AnswerSettings(max_new_tokens=served.context_tokens - len(ids))
            async with aclosing(engine.stream(ids, long)) as pieces:
                await anext(pieces)
                os.kill(before["pid"], signal.SIGKILL)
                with pytest.raises(EngineUnavailable):
                    async for _ in pieces:
                        pass
            while engine.is_ready():
                await asyncio.sleep(0.01)
            with pytest.raises(EngineUnavailable):
                await whole_answer(engine.stream(ids, AnswerSettings(max_new_tokens=1)))
            while not engine.is_ready():
                await asyncio.sleep(0.02)
            assert (await whole_answer(engine.stream(ids, AnswerSettings(max_new_tokens=3)))).num_tokens > 0
            after = await facts(engine)
            assert after["pid"] != before["pid"]
            assert gone(before["worker"]), "what a dead server left behind is ended"
        assert gone(after["pid"], after["worker"])

    run(task)
    assert any("exit code 137" in line and "again in 0.05 s" in line for line in said)


@pytest.mark.parametrize(
    ("flags", "words"),
    [(("--no-such-flag",), "unrecognized arguments: --no-such-flag"), (("--fail-with", "no GPU"), "no GPU")],
)
def test_a_server_that_does_not_start_is_explained(
    served: ServedModel,
    python: str,
    flags: tuple[str, ...],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its log stays, in a folder that the message names."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    async def task() -> None:
        async with started(served, python, *flags):
            pass

    with pytest.raises(UserError, match="exit code") as caught:
        run(task)
    assert words in str(caught.value)
    [log] = tmp_path.glob("ochat-vllm-*/vllm.log")
    assert str(log) in str(caught.value)


def test_a_path_too_long_for_a_socket_means_a_port(
    served: ServedModel, python: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ("long" * 25)).mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / ("long" * 25)))

    async def task() -> None:
        async with started(served, python) as engine:
            assert "--port" in (await facts(engine))["arguments"]
            answer = await whole_answer(engine.stream([5], AnswerSettings(max_new_tokens=2)))
            assert answer.num_tokens == 2

    run(task)


@pytest.mark.parametrize("is_killed", [True, False])
def test_the_command_ends_with_the_process_that_started_it(is_killed: bool, tmp_path: Path) -> None:
    """SIGKILL of that process, which can do nothing about it: command and its child end by the pipe, and the keeper
    removes the folder. The control: it stays where the starter says that it is alive.
    """
    folder = tmp_path / "ochat-vllm-x"
    folder.mkdir()
    child = "import subprocess, sys, time\n" + (
        "other = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print(other.pid, flush=True)\ntime.sleep(600)\n"
    )
    starter = (
        "import subprocess, sys, time\n"
        "command = [sys.executable, '-I', *sys.argv[1:]]\n"
        "kept = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)\n"
        "print(kept.pid, flush=True)\nsys.stdin.read()\n"
        f"kept.stdin.write({keeper.KEEP!r})\nkept.stdin.close()\nkept.wait()\n"
    )
    command = [sys.executable, "-c", starter, keeper.__file__, str(folder), sys.executable, "-c", child]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        pids = [int(process.stdout.readline()) for _ in range(2)]
        assert all(map(alive, pids)), "the control: both run"
        if is_killed:
            process.kill()
        process.stdin.close()
        process.wait(60)
    assert gone(*pids)
    assert folder.exists() is not is_killed


def test_the_keeper_gives_the_exit_code() -> None:
    for code, wanted in (("raise SystemExit(7)", 7), ("import os; os.kill(os.getpid(), 15)", 143)):
        command = [sys.executable, "-I", keeper.__file__, "no-folder", sys.executable, "-c", code]
        with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
            assert process.wait(120) == wanted


def write_adapter(folder: Path, base: str, **values: Any) -> Path:
    folder.mkdir(parents=True)
    config = {"peft_type": "LORA", "r": 8, "base_model_name_or_path": base, "target_modules": ["q_proj"], **values}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"trainable_token_indices": {"embed_tokens": [7]}}, "control tokens"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"use_dora": True}, "DoRA"),
        ({"bias": "all"}, "bias"),
        ({"rank_pattern": {"q_proj": 4}}, "rank_pattern"),
        ({"r": 1000}, "rank 1000"),
        ({"base_model_name_or_path": "org/other"}, "org/other"),
    ],
)
def test_an_adapter_that_vllm_cannot_serve_is_refused(
    values: dict[str, Any], words: str, served: ServedModel, tmp_path: Path
) -> None:
    folder = write_adapter(tmp_path / "adapter", str(served.folder), **values)
    with pytest.raises(UserError, match=words):
        lora_rank(folder, served)


def test_adapters_are_further_models(served: ServedModel, python: str, tmp_path: Path) -> None:
    """The smallest rank that vLLM takes and that holds all of them."""
    one = write_adapter(tmp_path / "one", str(served.folder), r=8)
    two = write_adapter(tmp_path / "two", str(served.folder), r=24)
    found = require_vllm(python)
    command = command_of(served, found, adapters={"one": one, "two": two}, flags=["--x"], listen=["--uds", "s"])
    assert command[:3] == [python, "-m", "vllm.entrypoints.openai.api_server"]
    assert command[command.index("--max-lora-rank") + 1] == "32"
    assert command[command.index("--lora-modules") + 1 :] == [f"one={one}", f"two={two}", "--x"]
    alone = command_of(served, found, adapters={"one": one}, flags=[], listen=[])
    assert alone[alone.index("--max-lora-rank") + 1] == "8"
    assert "--enable-lora" not in command_of(served, found, adapters={}, flags=[], listen=[])

    async def task() -> None:
        options = EngineOptions(vllm_python=python, adapters={"one": one})
        engine = make_engine(served, options, say=lambda line: None)
        await engine.start()
        try:
            for adapter in (None, "one"):
                await whole_answer(engine.stream([5], AnswerSettings(max_new_tokens=1, adapter=adapter)))
            assert isinstance(engine, VllmEngine)
            bodies = (await facts(engine))["bodies"]
            assert [body["model"] for body in bodies if body["stream"]] == [served.name, "one"]
            assert "adapter" not in engine.unsupported
            with pytest.raises(EngineError, match="two"):
                await whole_answer(engine.stream([5], AnswerSettings(max_new_tokens=1, adapter="two")))
        finally:
            await engine.close()

    run(task)


def test_which_engine_is_chosen(served: ServedModel, python: str, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    def chosen(**options: Any) -> str:
        return make_engine(served, EngineOptions(**options), say=said.append).name

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert chosen() == "transformers"
    assert chosen(vllm_python=python) == chosen(kind="vllm", vllm_python=python) == "vllm"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(choose, "find_vllm", lambda path: None)
    assert chosen() == "transformers"
    assert "--vllm-python" in " ".join(said)
    monkeypatch.setattr(choose, "find_vllm", lambda path: require_vllm(python))
    assert chosen() == "vllm", "the best that is here"
    assert chosen(kind="transformers") == "transformers"
    assert isinstance(make_engine(served, EngineOptions(kind="transformers"), say=said.append), EmbeddedEngine)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kind": "vllm"}, "python3 -m venv"),
        ({"vllm_python": "/no/such/python"}, "does not run"),
        ({"backend": "http://127.0.0.1:1", "kind": "vllm"}, "--backend"),
        ({"backend": "no address"}, "is not the address of a server"),
        ({"backend": "http://a:secret@127.0.0.1:1"}, "set its key in OCHAT_BACKEND_KEY"),
        ({"backend_model": "x"}, "--backend"),
        ({"vllm_flags": ("--x",)}, "--engine vllm"),
        ({"adapters": {"a": Path("x")}}, "--engine vllm"),
        ({"kind": "transformers", "vllm_python": "x"}, "contradicts"),
    ],
)
def test_what_does_not_go_together_is_refused(options: dict[str, Any], words: str, served: ServedModel) -> None:
    with pytest.raises(UserError, match=words) as caught:
        make_engine(served, EngineOptions(**options), say=lambda line: None)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("flag", ["--api-key=x", "--model", "--port", "--uds", "--generation-config"])
def test_flags_that_are_ours_are_refused(flag: str, served: ServedModel) -> None:
    found = VllmPython(path="python", version=VERSION)
    with pytest.raises(UserError, match="set by this command"):
        VllmEngine(served, found, adapters={}, flags=(flag, "x"), say=lambda line: None)
