"""Answers of a running server: `ochat serve`, or another one with OpenAI's API."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from data_pipeline.errors import UserError
from data_pipeline.text_rules import quoted
from ochat_train.chat.answerer import ChatError, ChatModel, Question, SentPrompt
from ochat_train.inference.engine import Piece
from ochat_train.system.addresses import SERVER_KEY, is_this_machine, server_address
from ochat_train.system.requirements import http_library

_SECONDS_TO_CONNECT = 10.0
_SECONDS_BETWEEN_PIECES = 600.0  # a server may let a question wait for its turn
_UNAUTHORIZED = 401
_MOST_CHARACTERS = 1000  # of what a server says about an error


class _Refused(ChatError):
    """The server does not do what was asked."""

    def __init__(self, text: str, *, status: int) -> None:
        super().__init__(text)
        self.status = status


class ServerAnswerer:
    """Asks a server. model: a name of its `/v1/models`, None for the first. key: empty for none."""

    def __init__(self, url: str, *, model: str | None, key: str) -> None:
        httpx = http_library()
        self._url, self._model = _base_url(url), model
        self._client = httpx.AsyncClient(
            base_url=self._url,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(_SECONDS_BETWEEN_PIECES, connect=_SECONDS_TO_CONNECT),
            trust_env=not is_this_machine(self._url),
        )

    async def start(self) -> ChatModel:
        """Read what the server has. Raises UserError where there is none, or not this model."""
        try:
            rows = await self._json("GET", "models", None)
            names = [str(row["id"]) for row in rows["data"]]
        except _Refused as error:
            remedy = f"put a key into the variable {SERVER_KEY}" if error.status == _UNAUTHORIZED else ""
            raise UserError(self._url, str(error), remedy) from None
        except ChatError as error:
            raise UserError(self._url, str(error), "is `ochat serve` running there?") from None
        except (KeyError, TypeError):
            raise UserError(self._url, "does not answer like a server with OpenAI's API") from None
        aliases = {name for name in names for other in names if name.startswith(f"{other}@")}
        models = [name for name in names if name not in aliases]
        if not models:
            raise UserError(self._url, "has no model")
        name = self._model or models[0]
        if name not in models:
            raise UserError(f"--model {name}", f"the server does not have it; it has {', '.join(map(quoted, models))}")
        self._model = name
        row = rows["data"][names.index(name)]
        conditions = [other.removeprefix(f"{name}@") for other in names if other.startswith(f"{name}@")]
        return ChatModel(name=name, conditions=tuple(conditions), default=row.get("condition"))

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def pieces(self, question: Question) -> AsyncIterator[Piece]:
        """The pieces of an answer, from a stream of server-sent events."""
        body = {**self._body(question), "stream": True, "stream_options": {"include_usage": True}}
        body |= _given(max_tokens=question.max_new_tokens, seed=question.seed)
        async with self._request("POST", "chat/completions", {**body, "temperature": question.temperature}) as response:
            async for line in response.aiter_lines():
                if not line.startswith("data:"):
                    continue
                if (data := line.removeprefix("data:").strip()) == "[DONE]":
                    return
                if (piece := _piece(data)) is not None:
                    yield piece
        raise ChatError("the answer broke off: the connection ended before the answer did")

    async def prompt(self, question: Question) -> SentPrompt:
        """Text and ids, as the server makes them."""
        found = await self._json("POST", "render", self._body(question))
        try:
            return SentPrompt(text=str(found["text"]), ids=[int(number) for number in found["ids"]])
        except (KeyError, TypeError, ValueError):
            raise ChatError("the server does not say what it sends to the model") from None

    def _body(self, question: Question) -> dict[str, Any]:
        return {"model": self._model, "messages": list(question.messages), **_given(condition=question.condition)}

    async def _json(self, method: str, path: str, body: Mapping[str, Any] | None) -> Any:
        async with self._request(method, path, body) as response:
            try:
                return json.loads(await response.aread())
            except ValueError:
                raise ChatError("the server did not answer with JSON") from None

    @asynccontextmanager
    async def _request(self, method: str, path: str, body: Mapping[str, Any] | None) -> AsyncIterator[Any]:
        """A response of the server; ChatError with what it says where it refuses, and where it is not there."""
        import httpx

        try:
            async with self._client.stream(method, f"v1/{path}", json=body) as response:
                if response.is_error:
                    status = response.status_code
                    raise _Refused(_refusal(status, response.headers, await response.aread()), status=status)
                yield response
        except httpx.TransportError as error:
            text = str(error) or type(error).__name__
            raise ChatError(f"the server at {self._url} cannot be reached: {text}") from None


def _base_url(url: str) -> str:
    """The address without the path of the API. Raises UserError for what is not an address, or has a key in it."""
    text = url if "//" in url else f"http://{url}"
    return server_address(text, option="--url", key_variable=SERVER_KEY, example="http://localhost:18888") + "/"


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _piece(data: str) -> Piece | None:
    """A piece of an event, None for one that adds nothing. Raises ChatError for an error of the server."""
    try:
        event = json.loads(data)
        if error := event.get("error"):
            raise ChatError(str(error["message"])[:_MOST_CHARACTERS])
        if not event["choices"]:
            return None
        [choice] = event["choices"]
        text, finish = choice["delta"].get("content") or "", choice.get("finish_reason")
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ChatError("the server sent something that is not a piece of an answer") from None
    return Piece(text=text, num_tokens=1 if text else 0, finish=finish)


def _refusal(status: int, headers: Mapping[str, str], content: bytes) -> str:
    try:
        text = str(json.loads(content)["error"]["message"])[:_MOST_CHARACTERS]
    except (ValueError, KeyError, TypeError):
        text = f"the server answered {status}"
    wait = headers.get("retry-after", "")
    return f"{text}; try again in {wait} s" if wait.isdigit() else text
