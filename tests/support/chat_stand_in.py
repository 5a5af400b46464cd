"""A small server that speaks the API of `ochat serve`, whose answers a test writes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from ochat_train.serving.page import page, page_headers
from tests.support.waiting import wait_for

CONDITIONS = ("GPT4 Correct", "GPT3")
MODELS = ("small", *(f"small@{condition}" for condition in CONDITIONS))

# (pieces of the answer to a request) of a body
Script = Callable[[Mapping[str, Any]], Sequence[str]]


def say_condition(body: Mapping[str, Any]) -> Sequence[str]:
    """The answer names what it was asked and under which condition."""
    condition = body.get("condition") or body["model"].partition("@")[2] or CONDITIONS[0]
    return [f"{condition}: ", body["messages"][-1]["content"], " ", f"after {len(body['messages']) - 1}"]


@dataclass(kw_only=True)
class StandIn:
    """A running server. models: ids of its models. script: writes answers. keys: empty for none. refused: a status and
    a text for every question, None to answer. gate: answers wait for it before their last piece. breaks_off: answers
    end without their end. page, headers: instead of ours. bodies: what was asked. num_running: answers under way.
    """

    models: Sequence[str] = MODELS
    script: Script = say_condition
    keys: tuple[str, ...] = ()
    refused: tuple[int, str] | None = None
    gate: threading.Event | None = None
    breaks_off: bool = False
    page: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    num_running: int = 0
    url: str = ""

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/", self._page),
                Route("/v1/models", self._models),
                Route("/v1/chat/completions", self._completions, methods=["POST"]),
                Route("/v1/render", self._render, methods=["POST"]),
            ]
        )

    def _problem(self, request: Request) -> Response | None:
        if self.keys and request.headers.get("authorization", "").removeprefix("Bearer ") not in self.keys:
            return _error(401, "wrong key" if "authorization" in request.headers else "a key is needed")
        return None

    async def _page(self, request: Request) -> Response:
        status = 401 if self._problem(request) else 200
        return Response(self.page or page(), status, headers=dict(self.headers or page_headers()))

    async def _models(self, request: Request) -> Response:
        data = [{"id": name, "object": "model", "created": 0, "owned_by": "ochat"} for name in self.models]
        return self._problem(request) or JSONResponse({"object": "list", "data": data})

    async def _render(self, request: Request) -> Response:
        body = await request.json()
        text = "".join(f"{message['role']}: {message['content']}\n" for message in body["messages"])
        condition = body["model"].partition("@")[2]
        tokens = [{"id": at, "text": c if at else "<s>", "is_control": at == 0} for at, c in enumerate(text)]
        ids = list(range(len(text)))
        document = {"condition": condition, "text": text, "ids": ids, "tokens": tokens, "num_tokens": len(text)}
        return self._problem(request) or JSONResponse(document)

    async def _completions(self, request: Request) -> Response:
        if (problem := self._problem(request)) is not None:
            return problem
        if self.refused is not None:
            return _error(*self.refused, headers={"Retry-After": "7"} if self.refused[0] == 503 else None)
        body = await request.json()
        self.bodies.append(body)
        if not body.get("stream"):
            text = "".join(self.script(body))
            message = {"role": "assistant", "content": text}
            return JSONResponse({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})
        return StreamingResponse(self._events(body), media_type="text/event-stream")

    async def _events(self, body: Mapping[str, Any]) -> AsyncIterator[str]:
        pieces = self.script(body)
        self.num_running += 1
        try:
            for number, piece in enumerate(pieces, 1):
                while number == len(pieces) and self.gate is not None and not self.gate.is_set():
                    await asyncio.sleep(0.005)
                await asyncio.sleep(0)  # so that a client that leaves is noticed
                yield _event({"choices": [{"index": 0, "delta": {"content": piece}, "finish_reason": None}]})
            if self.breaks_off:
                return
            yield _event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
            yield _event({"choices": [], "usage": {"completion_tokens": len(pieces), "prompt_tokens": 3}})
            yield "data: [DONE]\n\n"
        finally:
            self.num_running -= 1


@contextlib.contextmanager
def served(stand_in: StandIn) -> Iterator[StandIn]:
    """The server on a free port of this machine, until the end of the block."""
    config = uvicorn.Config(stand_in.app(), host="127.0.0.1", port=0, log_level="error", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    wait_for(lambda: server.started)
    stand_in.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    try:
        yield stand_in
    finally:
        server.should_exit = True
        thread.join(timeout=60)


def _event(document: Mapping[str, Any]) -> str:
    return f"data: {json.dumps(document)}\n\n"


def _error(status: int, text: str, headers: Mapping[str, str] | None = None) -> Response:
    return JSONResponse({"error": {"message": text, "type": "error"}}, status, headers=headers)
