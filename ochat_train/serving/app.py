"""The application of `ochat serve`: routes around one engine. Any ASGI server runs it."""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from ochat_train.inference.engine import Engine
from ochat_train.serving.admission import Admission
from ochat_train.serving.answering import engine_unavailable
from ochat_train.serving.bodies import parse_object, read_body
from ochat_train.serving.chat import ChatResponse, Job
from ochat_train.serving.errors import bad_request, json_response
from ochat_train.serving.events import Head
from ochat_train.serving.guard import RECORD, STARTED, Guard, Traffic
from ochat_train.serving.metrics import CONTENT_TYPE_LATEST, ServerMetrics
from ochat_train.serving.page import show_page
from ochat_train.serving.prompts import PromptWriter, check_length
from ochat_train.serving.request_log import RequestLog, RequestRecord
from ochat_train.serving.requests import ChatRequest, read_request
from ochat_train.serving.sampling import answer_settings, refuse_unsupported
from ochat_train.serving.served import Chosen, ModelTable, OfferedModel
from ochat_train.serving.settings import ServeSettings

T = TypeVar("T")
_BODY_BYTES = "ochat.body_bytes"  # in the scope: how long the body was
_SHORT_BODY_BYTES = 4096


@dataclass(frozen=True, kw_only=True)
class App:
    """The application and what the process around it may ask. asgi: what an ASGI server calls."""

    asgi: ASGIApp
    traffic: Traffic
    admission: Admission

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Call the ASGI application."""
        await self.asgi(scope, receive, send)


def make_app(
    engine: Engine,
    models: Sequence[OfferedModel],
    settings: ServeSettings | None = None,
    *,
    log: RequestLog | None = None,
) -> App:
    """The application over a started engine. models: the first is the one that requests without a name get.

    Raises UserError where two models have one name, or where a template lets people write control tokens.
    """
    settings = settings or ServeSettings()
    traffic, metrics = Traffic(), ServerMetrics()
    admission = Admission(max_concurrent=settings.limits.max_concurrent, max_queue=settings.limits.max_queue)
    metrics.watch("ochat_running", "Answers that are being computed.", lambda: admission.num_running)
    metrics.watch("ochat_waiting", "Requests that wait for their turn.", lambda: admission.num_waiting)
    metrics.watch("ochat_engine_ready", "1 where the engine answers.", lambda: float(engine.is_ready()))
    log = log or RequestLog(file=None, prints=False)
    table = ModelTable(models, any_condition=settings.any_condition)
    api = _Api(engine, table, settings, admission, metrics, traffic, keeps_texts=log.with_texts)
    # Without the class `Starlette`: it would answer what is raised here itself.
    router = Router(routes=api.routes(), redirect_slashes=False)
    return App(
        asgi=Guard(router, settings, traffic=traffic, metrics=metrics, log=log), traffic=traffic, admission=admission
    )


class _Api:
    """The routes."""

    def __init__(
        self,
        engine: Engine,
        table: ModelTable,
        settings: ServeSettings,
        admission: Admission,
        metrics: ServerMetrics,
        traffic: Traffic,
        *,
        keeps_texts: bool,
    ) -> None:
        self._engine, self._table, self._limits = engine, table, settings.limits
        self._admission, self._metrics, self._traffic = admission, metrics, traffic
        self._writers = {model.name: PromptWriter(model) for model in table.models}
        for writer in self._writers.values():
            writer.check_plain()
        self._created = int(time.time())
        self._thread, self._tokenizers = ThreadPoolExecutor(1, "prompts"), threading.Lock()
        self._keeps_texts = keeps_texts

    @cached_property
    def _fingerprint(self) -> str:
        """Changes with what can change the answers of one seed: engine, versions and models. Known once it runs."""
        facts = [self._engine.name, dict(self._engine.versions), list(self._table.names)]
        return f"fp_{hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]}"

    def routes(self) -> list[Route]:
        """All of them."""
        return [
            Route("/", _named("/", show_page), methods=["GET"]),
            Route("/health", _named("/health", self._health), methods=["GET"]),
            Route("/metrics", _named("/metrics", self._show_metrics), methods=["GET"]),
            Route("/v1/models", _named("/v1/models", self._models), methods=["GET"]),
            Route("/v1/models/{name:path}", _named("/v1/models/NAME", self._model), methods=["GET"]),
            Route("/v1/chat/completions", _named("/v1/chat/completions", self._chat), methods=["POST"]),
            Route("/v1/render", _named("/v1/render", self._render), methods=["POST"]),
        ]

    async def _health(self, request: Request) -> Response:
        if self._traffic.is_draining:
            return json_response({"status": "draining"}, 503)
        is_ready = self._engine.is_ready()
        return json_response({"status": "ok" if is_ready else "engine_unavailable"}, 200 if is_ready else 503)

    async def _show_metrics(self, request: Request) -> Response:
        return Response(self._metrics.text(), media_type=CONTENT_TYPE_LATEST)

    async def _models(self, request: Request) -> Response:
        rows = [self._model_row(name, chosen) for name, chosen in self._table.names.items()]
        return json_response({"object": "list", "data": rows})

    async def _model(self, request: Request) -> Response:
        name = request.path_params["name"]
        chosen = self._table.names.get(name)
        if chosen is None:
            raise self._table.no_model(name)
        return json_response(self._model_row(name, chosen))

    def _model_row(self, name: str, chosen: Chosen) -> dict[str, Any]:
        """OpenAI's fields, and what a client needs to offer conditions."""
        return {
            "id": name,
            "object": "model",
            "created": self._created,
            "owned_by": "ochat",
            "root": chosen.model.name,
            "condition": chosen.condition,
            "conditions": list(chosen.model.conditions),
            "max_model_len": self._engine.context_tokens,
        }

    async def _chat(self, request: Request) -> ChatResponse:
        job = await self._job(request)
        return ChatResponse(engine=self._engine, admission=self._admission, metrics=self._metrics, job=job)

    async def _job(self, request: Request) -> Job:
        """A request that can be answered. Raises ApiError for all others, before anything is sent."""
        body, chosen = await self._read(request)
        record: RequestRecord = request.scope[RECORD]
        if (body.n or 1) > self._admission.max_concurrent:
            text = f"`n` is {body.n}, and this server computes {self._admission.max_concurrent} answers at once"
            raise bad_request(text, param="n")
        refuse_unsupported(body, self._engine.unsupported)
        writer = self._writers[chosen.model.name]
        ids = await self._in_thread(lambda: writer.ids(body, chosen.condition), request)
        num_answer_tokens = check_length(len(ids), body, self._engine.context_tokens)
        record.prompt_tokens, record.stream = len(ids), bool(body.stream)
        if self._keeps_texts:
            record.texts = {"messages": [message.model_dump(exclude_none=True) for message in body.messages]}
        if not self._engine.is_ready():
            raise engine_unavailable()
        return Job(
            request=body,
            chosen=chosen,
            prompt_ids=ids,
            settings=answer_settings(body, max_new_tokens=num_answer_tokens, adapter=chosen.model.adapter),
            head=self._head(record, body, chosen),
            record=record,
            started=request.scope[STARTED],
            deadline=request.scope[STARTED] + self._limits.request_seconds,
            keeps_texts=self._keeps_texts,
        )

    async def _render(self, request: Request) -> Response:
        body, chosen = await self._read(request)
        writer = self._writers[chosen.model.name]
        prompt = await self._in_thread(lambda: writer.prompt(body, chosen.condition), request)
        return json_response(
            {
                "object": "prompt",
                "model": chosen.model.name,
                "condition": chosen.condition,
                "text": prompt.text,
                "ids": prompt.ids,
                "tokens": await self._in_thread(lambda: writer.token_texts(prompt.ids), request),
                "num_tokens": len(prompt.ids),
                "context_tokens": self._engine.context_tokens,
            }
        )

    async def _read(self, request: Request) -> tuple[ChatRequest, Chosen]:
        data = await read_body(request, self._limits)
        request.scope[_BODY_BYTES] = len(data)
        body = await self._in_thread(lambda: read_request(parse_object(data)), request)
        if len(body.messages) > self._limits.max_messages:
            text = (
                f"the conversation has {len(body.messages):,} messages; at most {self._limits.max_messages:,} are taken"
            )
            raise bad_request(text, param="messages")
        variables = body.chat_template_kwargs
        conditions = [body.condition, variables.condition if variables else None]
        chosen = self._table.choose(body.model, [text for text in conditions if text is not None])
        record: RequestRecord = request.scope[RECORD]
        record.model, record.condition = chosen.model.name, chosen.condition
        return body, chosen

    async def _in_thread(self, work: Callable[[], T], request: Request) -> T:
        """Long prompts and bodies must not hold up the streams of others. The way to a thread and back takes longer
        than the work on a short one, which is done here unless the thread is at work: a tokenizer serves one thread at
        a time.
        """
        if request.scope[_BODY_BYTES] <= _SHORT_BODY_BYTES and self._tokenizers.acquire(blocking=False):
            try:
                return work()
            finally:
                self._tokenizers.release()

        def locked() -> T:
            with self._tokenizers:
                return work()

        return await asyncio.get_running_loop().run_in_executor(self._thread, locked)

    def _head(self, record: RequestRecord, body: ChatRequest, chosen: Chosen) -> Head:
        return Head(
            id=f"chatcmpl-{record.id.removeprefix('req-')}",
            created=int(time.time()),
            model=body.model or chosen.model.name,
            fingerprint=self._fingerprint,
            condition=chosen.condition,
        )


def _named(route: str, endpoint: Callable[[Request], Any]) -> Callable[[Request], Any]:
    """An endpoint that says in the record which route it is."""

    async def named(request: Request) -> Any:
        request.scope[RECORD].route = route
        return await endpoint(request)

    return named
