"""A chat server that answers: `ochat serve`, or any other with OpenAI's API."""

from __future__ import annotations

import asyncio
import email.utils
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from data_pipeline import nesting
from data_pipeline.errors import UserError
from ochat_train.suites.ask import TEMPORARY_STATUSES, NoAnswer, Prompt, TooLong, TurnAnswer, TurnSettings
from ochat_train.suites.suite import Message
from ochat_train.system.addresses import SERVER_KEY, is_this_machine, server_address
from ochat_train.system.requirements import http_library

_OWNER = "ochat"  # what `ochat serve` says in /v1/models
_TOO_LONG_CODE = "context_length_exceeded"
_CONNECT_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True)
class ServerFacts:
    """What a server says of its models.

    url: up to `/v1`. model: its name of the model to ask. is_ours: whether it is `ochat serve`. aliases: condition -> a
    name of the model that stands for it. conditions: those that can be asked for.
    """

    url: str
    model: str
    is_ours: bool
    aliases: Mapping[str, str]

    @property
    def conditions(self) -> tuple[str, ...]:
        """In the server's order."""
        return tuple(self.aliases)


def base_of_url(text: str) -> str:
    """The address up to `/v1`, of that of a server, its `/v1` or its chat route. Raises UserError."""
    address = server_address(text, option="the address", key_variable=SERVER_KEY, example="http://127.0.0.1:18888")
    return f"{address}/v1"


class UrlRespondent:
    """`Respondent` of a server. Opened by `open_url`, and closed by `close`."""

    def __init__(self, client: Any, facts: ServerFacts) -> None:
        self._client, self.facts = client, facts
        self._answered_as: dict[str, str] = {}  # name of a model -> what the server's replies call it

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    def prompt(self, messages: Sequence[Message], condition: str | None) -> Prompt:
        """The messages; only the server knows their tokens."""
        model, extra = self.facts.model, {}
        if condition is not None and self.facts.is_ours:
            extra = {"condition": condition}
        elif condition is not None:
            model = self.facts.aliases[condition]
        body = {"model": model, "messages": [dict(message) for message in messages], **extra}
        return Prompt(fingerprint=json.dumps(body, sort_keys=True), room=None, content=body)

    async def answer(self, prompt: Prompt, settings: TurnSettings) -> TurnAnswer:
        """One answer. Raises NoAnswer, and UserError where no question can be answered: a key that is not valid."""
        body = {**prompt.content, "temperature": settings.temperature, "max_tokens": settings.max_new_tokens}
        if settings.temperature:
            body |= {"top_p": settings.top_p, "seed": settings.seed}
        try:
            document = await self._post(body)
        except TooLong:
            if not self.facts.is_ours:
                raise
            del body["max_tokens"]  # then it is what the context leaves, which is less: all of it did not fit
            document = await self._post(body)
        answer = self._answer_in(document)
        self._require_same_model(body["model"], document.get("model"))
        return answer

    def _require_same_model(self, asked: str, name: Any) -> None:
        """Refuse answers of two models as those of one. A server may call a model otherwise than it was asked for."""
        if not isinstance(name, str):
            return
        before = self._answered_as.setdefault(asked, name)
        if name != before:
            problem = f"answers as {name[:80]!r}, and did as {before[:80]!r} before"
            raise UserError(self.facts.url, problem, "ask one model: another --out for each")

    async def _post(self, body: Mapping[str, Any]) -> Any:
        http = http_library()
        try:
            response = await self._client.post("/chat/completions", json=body)
        except http.TimeoutException:
            raise NoAnswer("the server was too slow", is_temporary=True) from None
        except http.TransportError:
            raise NoAnswer("no connection to the server", is_temporary=True) from None
        if response.status_code == 200:
            return _json(response)
        raise _failure(response)

    def _answer_in(self, document: Any) -> TurnAnswer:
        try:
            choice = document["choices"][0]
            text, finish = choice["message"].get("content") or "", choice.get("finish_reason")
            tokens = (document.get("usage") or {}).get("completion_tokens")
        except (LookupError, TypeError, AttributeError):
            raise NoAnswer("the server's reply is not that of OpenAI's API", is_temporary=True) from None
        if not isinstance(text, str):
            raise NoAnswer("the server's reply is not that of OpenAI's API", is_temporary=True)
        if finish not in ("stop", "length"):
            raise NoAnswer(f"the answer ended with {str(finish)[:40]!r}", is_temporary=False)
        if not text.strip() and not self.facts.is_ours:  # ours says nothing only where the model says nothing
            raise NoAnswer("the answer was empty", is_temporary=True)
        text = text.encode("utf-8", "replace").decode("utf-8")  # half of a surrogate pair is no text
        is_count = isinstance(tokens, int) and not isinstance(tokens, bool)
        return TurnAnswer(text=text.removeprefix(" "), num_tokens=tokens if is_count else None, finish=finish)


async def open_url(text: str, *, model: str | None, num_parallel: int, timeout_seconds: float) -> UrlRespondent:
    """Connect to a server and ask for its models. The key comes from the environment (OCHAT_API_KEY).

    model: None for the only one. Raises UserError where it cannot be reached, or has several models.
    """
    http, url = http_library(), base_of_url(text)
    key = os.environ.get(SERVER_KEY)
    client = http.AsyncClient(
        base_url=url,
        headers={"authorization": f"Bearer {key}"} if key else {},
        timeout=http.Timeout(timeout_seconds, connect=_CONNECT_SECONDS),
        limits=http.Limits(max_connections=num_parallel, max_keepalive_connections=num_parallel),
        trust_env=not is_this_machine(url),
    )
    try:
        return UrlRespondent(client, _facts(await _models(client, url), url=url, model=model))
    except BaseException:
        await asyncio.shield(client.aclose())
        raise


def url_conditions(facts: ServerFacts, text: str) -> tuple[str | None, ...]:
    """The conditions to ask under; as `export.chosen_conditions`. A server that has none is asked without one."""
    if text == "default" or (text == "all" and not facts.conditions):
        return (None,)
    if text == "all":
        return facts.conditions
    chosen = [text] if text in facts.conditions else [part.strip() for part in text.split(",")]
    for name in chosen:
        if name not in facts.conditions:
            known = ", ".join(repr(each) for each in facts.conditions) or "none"
            problem = f"{facts.url} has no condition {name!r} (conditions of {facts.model}: {known})"
            raise UserError("--condition", problem, "other servers would ignore it, so it is not sent")
    return tuple(dict.fromkeys(chosen))


async def _models(client: Any, url: str) -> list[dict[str, Any]]:
    http = http_library()
    try:
        response = await client.get("/models")
    except http.HTTPError as error:
        raise UserError(url, f"cannot be reached: {error or type(error).__name__}", "start the server first") from None
    if response.status_code in (401, 403):
        raise _refused(response)
    try:
        rows = nesting.loads(response.content)["data"] if response.status_code == 200 else []
    except (ValueError, LookupError, TypeError):
        rows = []
    return [row for row in rows if isinstance(row, dict) and isinstance(row.get("id"), str)]


def _facts(rows: Sequence[Mapping[str, Any]], *, url: str, model: str | None) -> ServerFacts:
    ids = [row["id"] for row in rows]
    bases = [name for name in ids if not any(name.startswith(f"{other}@") for other in ids)]
    name = model
    if name is None:
        if len(bases) != 1:
            named = ", ".join(bases) or "none in /v1/models"
            raise UserError(url, f"has {len(bases)} models ({named})", "choose one with --model")
        name = bases[0]
    elif ids and name not in ids:
        raise UserError("--model", f"{url} has no model {name}; models: {', '.join(ids)}")
    aliases = {each.removeprefix(f"{name}@"): each for each in ids if each.startswith(f"{name}@")}
    row = next((row for row in rows if row["id"] == name), {})
    return ServerFacts(url=url, model=name, is_ours=row.get("owned_by") == _OWNER, aliases=aliases)


def _failure(response: Any) -> Exception:
    """What a status other than 200 means."""
    status = response.status_code
    if status in (401, 403):
        return _refused(response)
    error = _error_of(response)
    if error.get("code") == _TOO_LONG_CODE or (status == 400 and "context length" in str(error.get("message"))):
        return TooLong()
    if status == 404:
        return UserError(str(response.url), f"HTTP 404: {error.get('message', 'not found')}", "see --model")
    reason = f"HTTP {status}"
    if status in TEMPORARY_STATUSES:
        return NoAnswer(reason, is_temporary=True, wait_seconds=_retry_after(response.headers, now=time.time()))
    return NoAnswer(f"{reason}: {str(error.get('message', ''))[:80]}".rstrip(": "), is_temporary=False)


def _refused(response: Any) -> UserError:
    return UserError(
        str(response.url), f"HTTP {response.status_code}: the key is not valid", f"set {SERVER_KEY} to a key of it"
    )


def _retry_after(headers: Mapping[str, str], *, now: float) -> float | None:
    """Seconds of the header Retry-After: a number, or a date."""
    value = headers.get("retry-after")
    if value is None:
        return None
    if value.isascii() and value.strip().isdigit():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - now)
    except (TypeError, ValueError, OverflowError, OSError):  # not a date, or of a year that no clock has
        return None


def _error_of(response: Any) -> dict[str, Any]:
    """OpenAI's error object, empty where there is none."""
    try:
        document = nesting.loads(response.content)
    except ValueError:
        return {}
    error = document.get("error", document) if isinstance(document, dict) else {}
    return error if isinstance(error, dict) else {"message": error}


def _json(response: Any) -> Any:
    try:
        return nesting.loads(response.content)
    except ValueError:
        raise NoAnswer("the server's reply is not JSON", is_temporary=True) from None
