"""An engine whose answers a test writes, and `ochat serve` around it on a free port."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from data_pipeline.prompt.chat_folder import write_tokenizer_folder
from data_pipeline.prompt.templates import TEMPLATES
from data_pipeline.prompt.tokenizer_files import find_tokenizer_files
from data_pipeline.prompt.tokenizer_loading import load_tokenizer_spec
from ochat_train.inference.engine import AnswerSettings, Piece, TokenLogprob
from ochat_train.serving.app import App, make_app
from ochat_train.serving.request_log import RequestLog
from ochat_train.serving.served import OfferedModel
from ochat_train.serving.server import bind, run_server
from ochat_train.serving.settings import Limits, ServeSettings
from ochat_train.system.pretrained import load_tokenizer
from tests.support.tokenizers import write_small_tokenizer
from tests.support.waiting import wait_for

CONDITIONS = ("GPT4 Correct", "GPT3")
# The pieces of an answer to the ids of a prompt.
Script = Callable[[Sequence[int], AnswerSettings], Sequence[str]]


def say_hello(prompt_ids: Sequence[int], settings: AnswerSettings) -> Sequence[str]:
    return [" Hel", "lo", " there"]


@dataclass(kw_only=True)
class ScriptedEngine:
    """Streams what `script` says, a token a piece.

    pause_s: before each piece. is_held: answers wait until it is false. fails_after: pieces before `failure` is raised.
    asked: prompts and settings. num_running: streams that are open; num_closed: those that have ended early.
    """

    script: Script = say_hello
    pause_s: float = 0.0
    context_tokens: int = 256
    failure: Exception | None = None
    fails_after: int = 0
    unsupported: Mapping[str, str] = field(default_factory=dict)
    ready: bool = True
    is_held: bool = False
    asked: list[tuple[list[int], AnswerSettings]] = field(default_factory=list)
    num_running: int = 0
    most_running: int = 0
    num_closed: int = 0
    is_closed: bool = False
    name: str = "scripted"
    versions: Mapping[str, str] = field(default_factory=lambda: {"scripted": "1"})

    async def start(self) -> None:
        self.ready = True

    async def close(self) -> None:
        self.is_closed = True

    def is_ready(self) -> bool:
        return self.ready

    async def stream(self, prompt_ids: Sequence[int], settings: AnswerSettings) -> AsyncIterator[Piece]:
        self.asked.append((list(prompt_ids), settings))
        self.num_running += 1
        self.most_running = max(self.most_running, self.num_running)
        ended = False
        try:
            while self.is_held:
                await asyncio.sleep(0.005)
            texts = self.script(prompt_ids, settings)
            for number, text in enumerate([*texts, ""]):
                await asyncio.sleep(self.pause_s)
                if self.failure is not None and number == self.fails_after:
                    raise self.failure
                if number == len(texts) or number == settings.max_new_tokens:
                    break
                yield Piece(text=text, num_tokens=1, logprobs=_row(text, settings))
            ended = True
            yield Piece(text="", num_tokens=0, finish="stop" if number == len(texts) else "length")
        finally:
            self.num_running -= 1
            self.num_closed += not ended


def _row(text: str, settings: AnswerSettings) -> tuple[TokenLogprob, ...]:
    if settings.num_logprobs is None:
        return ()
    alternatives = {text: -0.5, "\u00e9": -1.5, "x": float("-inf")}
    kept = dict(list(alternatives.items())[: settings.num_logprobs])
    return (TokenLogprob(text=text, logprob=-0.5, alternatives=kept),)


@functools.cache
def tokenizer_of(template: str = "openchat_3.5", default: str = CONDITIONS[0]) -> Any:
    """The tokenizer of an export with one of the project's templates."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = write_small_tokenizer(folder / "base")
        spec = load_tokenizer_spec(find_tokenizer_files(str(base)), TEMPLATES[template])
        write_tokenizer_folder(
            folder / "out", spec, TEMPLATES[template], inference_condition=default, max_length_tokens=256
        )
        return load_tokenizer(folder / "out")


def offered(template: str = "openchat_3.5", *, name: str = "small", **changes: Any) -> OfferedModel:
    """A model that is trained under two conditions."""
    values: dict[str, Any] = {
        "name": name,
        "tokenizer": tokenizer_of(template),
        "conditions": CONDITIONS,
        "default": CONDITIONS[0],
    }
    return OfferedModel(**{**values, **changes})


@dataclass(kw_only=True)
class Running:
    """A server that runs in a thread. end: does what a signal does."""

    app: App
    engine: ScriptedEngine
    url: str
    port: int
    client: httpx.Client
    thread: threading.Thread
    end: Callable[[], None]


@contextlib.contextmanager
def serving(
    engine: ScriptedEngine | None = None,
    *,
    models: Sequence[OfferedModel] = (),
    limits: Limits | None = None,
    log: RequestLog | None = None,
    **settings: Any,
) -> Iterator[Running]:
    """`ochat serve` on a free port, until the end of the block."""
    engine = engine or ScriptedEngine()
    limits = limits or Limits(drain_seconds=0.2)
    app = make_app(engine, models or [offered()], ServeSettings(limits=limits, **settings), log=log)
    bound = bind("127.0.0.1", 0)
    ends: list[Callable[[], None]] = []
    server = run_server(app, engine, bound, limits, prints_stats=False, on_start=ends.append)
    thread = threading.Thread(target=lambda: asyncio.run(server), daemon=True)
    thread.start()
    port = bound.sockets[0].getsockname()[1]
    _wait_for_port(port)
    url = f"http://127.0.0.1:{port}"
    with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
        try:
            yield Running(app=app, engine=engine, url=url, port=port, client=client, thread=thread, end=ends[0])
        finally:
            ends[0]()
            ends[0]()  # the thread ends a fifth of a second later; the next test need not wait for it


def _wait_for_port(port: int) -> None:
    def listens() -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=60):
            return True
        return False

    wait_for(listens)
