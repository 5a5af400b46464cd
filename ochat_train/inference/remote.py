"""The engine behind an address: any OpenAI-compatible server that has the same model."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

from data_pipeline.errors import UserError
from data_pipeline.text_rules import quoted
from ochat_train.inference.completions import CompletionsClient
from ochat_train.inference.engine import AnswerSettings, EngineError, EngineUnavailable, Piece, cancelled
from ochat_train.inference.served_model import ServedModel
from ochat_train.inference.streams import Server
from ochat_train.system.addresses import server_address
from ochat_train.system.requirements import http_library

KEY_VARIABLE = "OCHAT_BACKEND_KEY"
_WATCH_SECONDS = 5.0
_NO_TOKENS_OF_ITS_OWN = 1  # a beginning of text, which a server may put before a text, and never before ids
# Different tokenizers do not count the same in words, digits, signs and letters of many kinds.
_PASSAGE = (
    "The quick brown fox jumps over 13 lazy dogs; 2,718,281 of them (3.14159 %) were antidisestablishmentarian.\n"
    "    def f(x): return x**2 + 1  # naïve café, Größenverhältnis, мир, 日本語, 안녕하세요, שלום, 👩‍👩‍👧 -> ½"
)


class RemoteEngine:
    """`Engine` of a server that runs already. model: what it calls this model, None for the only one it has."""

    name = "server"
    versions: Mapping[str, str] = {}

    def __init__(self, served: ServedModel, url: str, *, model: str | None, say: Callable[[str], None]) -> None:
        http_library()
        self._served, self._model, self._say = served, model, say
        address = server_address(url, option="--backend", key_variable=KEY_VARIABLE, example="http://127.0.0.1:8000")
        self._server = Server(url=address, key=os.environ.get(KEY_VARIABLE) or None)
        self._client: CompletionsClient | None = None
        self._watch: asyncio.Task[None] | None = None
        self._is_ready, self._context_tokens = False, served.context_tokens

    @property
    def context_tokens(self) -> int:
        """Of prompt and answer together: the model's, or less where the server takes less."""
        return self._context_tokens

    @property
    def unsupported(self) -> Mapping[str, str]:
        """Adapters are models of the server like any other: name one with `--backend-model`."""
        return {"adapter": "a server behind an address has one model here"}

    async def start(self) -> None:
        """Look whether the server serves this model. Raises UserError where it does not, or not so far."""
        stop_ids = self._served.stop_ids
        client = CompletionsClient(self._server, self._served.tokenizer, stop_ids=stop_ids, on_unavailable=self._lose)
        try:
            await self._look(client)
        except BaseException as error:
            await client.close()
            if isinstance(error, EngineError):
                place, remedy = f"--backend {self._server.url}", "is an OpenAI-compatible server running there?"
                raise UserError(place, str(error), remedy) from None
            raise
        self._client, self._is_ready = client, True
        self._say(f"engine: model {quoted(str(self._model))} of the server at {self._server.url}")
        self._watch = asyncio.create_task(self._keep_looking(client))

    async def close(self) -> None:
        """End all answers. The server runs on."""
        watch, self._watch = self._watch, None
        await cancelled(watch)
        client, self._client, self._is_ready = self._client, None, False
        if client is not None:
            await client.close()

    def is_ready(self) -> bool:
        """Whether the server answered when it was last looked at, some seconds ago."""
        return self._is_ready

    def stream(self, prompt_ids: Sequence[int], settings: AnswerSettings) -> AsyncIterator[Piece]:
        """The pieces of one answer; see `Engine.stream`."""
        if self._client is None:
            raise EngineUnavailable("the engine is closed")
        if settings.adapter is not None:
            raise EngineError(f"adapter: {self.unsupported['adapter']}")
        return self._client.stream(prompt_ids, settings, model=str(self._model))

    def _lose(self) -> None:
        self._is_ready = False

    async def _look(self, client: CompletionsClient) -> None:
        place = f"--backend {self._server.url}"
        status, found = await client.get("/v1/models")
        if status in (401, 403):
            raise UserError(place, "the server wants another key", f"set {KEY_VARIABLE}")
        models = _models_of(found)
        if status != 200 or not models:
            raise UserError(place, f"answers /v1/models with {status} and no models", "is the address right?")
        self._model = _chosen_model(models, self._model, place)
        length = models[self._model]
        if length is not None:
            self._context_tokens = min(self._context_tokens, length)
        await self._compare_tokens(client, place, self._model)

    async def _compare_tokens(self, client: CompletionsClient, place: str, model: str) -> None:
        """The server must take ids as they are, and have the same tokenizer."""
        tokenizer = self._served.tokenizer
        # where a context is very short, the passage still fits
        ids = tokenizer.encode(_PASSAGE, add_special_tokens=False)[: max(1, self._context_tokens - 2)]
        if (found := await client.count_prompt(ids, model=model)) != len(ids):
            problem = f"counts {found} tokens in a prompt of {len(ids)} ids: it does not take ids as they are"
            raise UserError(place, problem, "use vLLM, SGLang or llama.cpp")
        text = _PASSAGE if len(ids) < self._context_tokens - 2 else _PASSAGE[:20]
        expected = len(tokenizer.encode(text, add_special_tokens=False))
        found = await client.count_prompt(text, model=model)
        if not expected <= found <= expected + _NO_TOKENS_OF_ITS_OWN:
            problem = f"model {quoted(model)} counts {found} tokens where {self._served.folder} counts {expected}"
            raise UserError(place, f"{problem}: it has another tokenizer, so it is another model", "serve this export")

    async def _keep_looking(self, client: CompletionsClient) -> None:
        route = "/health"
        while True:
            await asyncio.sleep(_WATCH_SECONDS if self._is_ready else _WATCH_SECONDS / 5)
            try:
                status, _ = await client.get(route)
            except EngineUnavailable:
                status = 0
            if status in (404, 405):
                route = "/v1/models"  # a server without /health
                continue
            was_ready, self._is_ready = self._is_ready, status == 200
            if was_ready != self._is_ready:
                said = "answers again" if self._is_ready else f"does not answer ({status or 'no connection'})"
                self._say(f"the server at {self._server.url} {said}")


def _models_of(found: Any) -> dict[str, int | None]:
    """Name -> longest prompt and answer, None where the server does not say."""
    rows = found.get("data") if isinstance(found, dict) else None
    models: dict[str, int | None] = {}
    for row in rows if isinstance(rows, list) else []:
        if isinstance(row, dict) and isinstance(row.get("id"), str):
            length = row.get("max_model_len")
            models[row["id"]] = length if isinstance(length, int) else None
    return models


def _chosen_model(models: Mapping[str, Any], wanted: str | None, place: str) -> str:
    if wanted is None and len(models) == 1:
        return next(iter(models))
    names = ", ".join(map(quoted, models))
    if wanted is None:
        raise UserError(place, f"has {len(models)} models: {names}", "choose one with `--backend-model`")
    if wanted not in models:
        raise UserError(f"--backend-model {wanted}", f"is not there; models: {names}")
    return wanted
