"""A client of `/v1/completions`: prompts as token ids, answers as a stream of token ids, or of text.

vLLM and SGLang send back the ids of an answer (`return_token_ids`), and its text is then made here as everywhere. Other
servers (llama.cpp) send text only.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from data_pipeline import nesting
from ochat_train.inference.engine import (
    AnswerSettings,
    EngineBusy,
    EngineError,
    EngineRefused,
    EngineUnavailable,
    Finish,
    Piece,
    TokenLogprob,
    joined,
)
from ochat_train.inference.pieces import IdLogprob, PieceMaker
from ochat_train.inference.streams import CONNECT_SECONDS, READ_SECONDS, BrokenStream, Response, Server, make_streams
from ochat_train.system.answer_text import StopTexts
from ochat_train.system.pretrained import reason_of

if TYPE_CHECKING:
    import httpx

_LARGEST_SEED = 2**63
_RETRY_SECONDS = (0.2, 1.0)  # before the first byte of an answer, and never after it
_MOST_CHARACTERS = 300  # of an error of the server, in ours
_FINISH: Mapping[str, Finish] = {"stop": "stop", "eos": "stop", "eos_token": "stop", "length": "length"}
# What no request asks for, and some servers do unless told otherwise: llama.cpp by itself, vLLM and SGLang where the
# model's generation_config.json says so. -1: all tokens may be chosen (0 is refused by SGLang).
_NOTHING_ELSE: Mapping[str, Any] = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
# What servers other than vLLM and SGLang may not know.
_WITH_IDS: Mapping[str, Any] = {"return_token_ids": True, "return_tokens_as_token_ids": True}
_ID_LEAD = "token_id:"  # how such servers write a token where log-probabilities are asked for


class CompletionsClient:
    """Asks one server. stop_ids: tokens that end every answer. on_unavailable: called when the server fails at an
    answer as if it did not run. Made inside an event loop.
    """

    def __init__(
        self,
        server: Server,
        tokenizer: Any,
        *,
        stop_ids: Sequence[int],
        on_unavailable: Callable[[], None] = lambda: None,
    ) -> None:
        import httpx

        self._on_unavailable = on_unavailable
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
        self._server, self._tokenizer, self._stop_ids = server, tokenizer, tuple(stop_ids)
        self._http = httpx.AsyncClient(
            base_url=server.url,
            transport=httpx.AsyncHTTPTransport(uds=server.socket, limits=limits) if server.is_local else None,
            timeout=httpx.Timeout(READ_SECONDS, connect=CONNECT_SECONDS),
            limits=limits,
            headers=server.headers,
            trust_env=not server.is_local,
        )
        self._streams = make_streams(server, self._http)
        self.sends_ids = True  # until `count_prompt` finds out that the server does not
        self._is_closed = False

    async def close(self) -> None:
        """End all connections, and so all answers."""
        self._is_closed = True
        await self._streams.close()
        await self._http.aclose()

    async def get(self, path: str) -> tuple[int, Any]:
        """Status and parsed JSON (None where it is none) of a route. Raises EngineUnavailable without a connection."""
        import httpx

        try:
            response = await self._http.get(path, timeout=CONNECT_SECONDS)
        except httpx.HTTPError as error:
            raise EngineUnavailable(f"{self._server.url}: {type(error).__name__}: {reason_of(error)}") from None
        try:
            return response.status_code, nesting.loads(response.text)
        except ValueError:
            return response.status_code, None

    async def count_prompt(self, prompt: str | Sequence[int], *, model: str) -> int:
        """How many tokens the server counts in a prompt, by its answer of one token.

        Also finds out whether it sends ids. Raises EngineError for a server that refuses.
        """
        plain = {"model": model, "prompt": prompt, "max_tokens": 1, "temperature": 0.0, "stream": False}
        if isinstance(prompt, str):
            plain["add_special_tokens"] = False
        response = await self._post({**plain, **_WITH_IDS})
        if response.status_code in (400, 422):  # it is strict about fields that it does not know
            plain.pop("add_special_tokens", None)
            response = await self._post(plain)
        if response.status_code != 200:
            raise _error_of(response.status_code, response.text)
        try:
            body = nesting.loads(response.text)
            self.sends_ids = isinstance(body["choices"][0].get("token_ids"), list)
            return int(body["usage"]["prompt_tokens"])
        except (ValueError, KeyError, IndexError, TypeError, AttributeError):
            raise EngineError("its answer is not that of an OpenAI-compatible server") from None

    async def _post(self, body: Mapping[str, Any]) -> httpx.Response:
        import httpx

        try:
            return await self._http.post("/v1/completions", json=body)
        except httpx.HTTPError as error:
            raise EngineUnavailable(f"{type(error).__name__}: {reason_of(error)}") from None

    async def stream(self, prompt_ids: Sequence[int], settings: AnswerSettings, *, model: str) -> AsyncIterator[Piece]:
        """The pieces of one answer. Closing this iterator closes the connection, and the server ends the answer.

        Raises EngineError and its kinds.
        """
        response = None
        try:
            response = await self._ask(self._body(prompt_ids, settings, model))
            reader = _EventReader(self._maker(prompt_ids, settings), joins=settings.num_logprobs is None)
            while not reader.is_done and (chunk := await response.read()):
                for piece in reader.pieces(chunk):
                    yield piece
                    if piece.finish is not None:
                        return
            raise EngineUnavailable("the server ended the answer early")
        except BrokenStream as error:
            self._on_unavailable()
            raise EngineUnavailable(f"the connection broke: {error}") from None
        except EngineUnavailable:
            self._on_unavailable()
            raise
        finally:
            if response is not None:
                await response.close()

    def _maker(self, prompt_ids: Sequence[int], settings: AnswerSettings) -> _IdPieces | _TextPieces:
        if not self.sends_ids:
            return _TextPieces(settings)
        pieces = PieceMaker(self._tokenizer, prompt_ids, settings, stop_ids=self._stop_ids)
        return _IdPieces(pieces, num_alternatives=settings.num_logprobs or 0)

    def _body(self, prompt_ids: Sequence[int], settings: AnswerSettings, model: str) -> dict[str, Any]:
        """All of what decides the answer is said, so that no default of the server does."""
        body: dict[str, Any] = {
            "model": model,
            "prompt": list(prompt_ids),
            "max_tokens": settings.max_new_tokens,
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            **_NOTHING_ELSE,
            "stream": True,
            "stop_token_ids": list(self._stop_ids),
            "skip_special_tokens": True,
        }
        if self.sends_ids:
            body |= _WITH_IDS
        else:
            body["stream_options"] = {"include_usage": True, "continuous_usage_stats": True}
        if settings.seed is not None:
            body["seed"] = settings.seed % _LARGEST_SEED  # servers take 64 bits with a sign
        if settings.num_logprobs is not None:
            body["logprobs"] = settings.num_logprobs
        if settings.response_format is not None:
            body["response_format"] = dict(settings.response_format)
        return body

    async def _ask(self, body: Mapping[str, Any]) -> Response:
        """The response that streams an answer; asked again only before the first byte."""
        for wait in (*_RETRY_SECONDS, None):
            if self._is_closed:  # while this waited to ask again
                raise EngineUnavailable("the connections to the server were ended")
            try:
                response = await self._streams.post("/v1/completions", body)
                break
            except BrokenStream as error:
                if wait is None or not error.is_connection:
                    raise EngineUnavailable(f"no connection: {error}") from None
                await asyncio.sleep(wait)
        if response.status == 200:
            return response
        try:
            data = b""
            while chunk := await response.read():
                data += chunk
        finally:
            await response.close()
        raise _error_of(response.status, data.decode("utf-8", errors="replace"))


class _EventReader:
    """Makes pieces of server-sent events, however those are cut. joins: whether those that arrive together become one
    piece, so that under load there are fewer pieces, and none is late.
    """

    def __init__(self, maker: _IdPieces | _TextPieces, *, joins: bool) -> None:
        self._maker, self._joins, self._rest, self.is_done = maker, joins, b"", False

    def pieces(self, chunk: bytes) -> Iterator[Piece]:
        """The pieces that these bytes complete, up to the last one of the answer. Raises EngineError after those that
        came before the failure.
        """
        found: list[Piece] = []
        failure = None
        try:
            for event in self.events(chunk):
                if (choice := _choice_of(event)) is not None:
                    found.append(self._maker.piece(choice, event))
                    if found[-1].finish is not None:
                        break
        except EngineError as error:
            failure = error
        yield from [joined(found)] if found and self._joins else found
        if failure is not None:
            raise failure

    def events(self, chunk: bytes) -> Iterator[Any]:
        """The JSON of each event. `is_done` tells whether [DONE] has come; nothing is read after it."""
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        for line in lines:
            if not line.startswith(b"data:"):
                continue
            data = line[len(b"data:") :].strip()
            if data == b"[DONE]":
                self.is_done = True
                return
            try:
                yield nesting.loads(data)
            except ValueError:
                raise EngineError("an event of the server is not JSON") from None


class _IdPieces:
    """Pieces from the ids of an answer. num_alternatives: of each token; vLLM sends one more."""

    def __init__(self, maker: PieceMaker, *, num_alternatives: int) -> None:
        self._maker, self._num_alternatives = maker, num_alternatives

    def piece(self, choice: Mapping[str, Any], event: Mapping[str, Any]) -> Piece:
        """The piece of one event."""
        piece = self._maker.add(choice.get("token_ids") or (), _id_rows(choice.get("logprobs"), self._num_alternatives))
        finish = _finish_of(choice)
        if finish is None or piece.finish is not None:
            return piece
        last = self._maker.end(finish)
        return Piece(
            text=piece.text + last.text, num_tokens=piece.num_tokens, finish=last.finish, logprobs=piece.logprobs
        )


class _TextPieces:
    """Pieces from the text of an answer, as the server decodes it. How many tokens it has is what the server counts,
    or one for each event where it does not say.
    """

    def __init__(self, settings: AnswerSettings) -> None:
        self._stop_texts, self._num_tokens = StopTexts(settings.stop), 0

    def piece(self, choice: Mapping[str, Any], event: Mapping[str, Any]) -> Piece:
        """The piece of one event."""
        text = self._stop_texts.add(str(choice.get("text") or ""))
        finish: Finish | None = "stop" if self._stop_texts.stopped else _finish_of(choice)
        if finish is not None:
            text += self._stop_texts.finish()
        before, usage = self._num_tokens, event.get("usage")
        counted = usage.get("completion_tokens") if isinstance(usage, dict) else None
        self._num_tokens = max(before, counted) if isinstance(counted, int) else before + bool(choice.get("text"))
        return Piece(
            text=text, num_tokens=self._num_tokens - before, finish=finish, logprobs=_text_rows(choice.get("logprobs"))
        )


def _choice_of(event: Any) -> Mapping[str, Any] | None:
    """The choice in an event, None for one without (a count at the end). Raises EngineError for an error event."""
    if not isinstance(event, dict):
        raise EngineError("an event of the server is no object")
    if event.get("error"):
        raise _error_in(event["error"])
    choices = event.get("choices")
    if not choices:
        return None
    choice = choices[0]
    if not isinstance(choice, dict):
        raise EngineError("an answer of the server is no object")
    return choice


def _finish_of(choice: Mapping[str, Any]) -> Finish | None:
    reason = choice.get("finish_reason")
    if reason is None:
        return None
    if reason not in _FINISH:
        raise EngineError(f"the server ended the answer: {_shortened(str(reason))}")
    return _FINISH[reason]


def _id_rows(logprobs: Any, num_alternatives: int) -> list[IdLogprob]:
    """Log-probabilities where tokens are written as `token_id:7`; none where there are none."""
    if not isinstance(logprobs, dict):
        return []
    places = zip(logprobs["tokens"], logprobs["token_logprobs"], logprobs.get("top_logprobs") or (), strict=False)
    return [
        IdLogprob(
            token=_id_of(token),
            logprob=float(logprob or 0.0),
            alternatives=sorted(
                ((_id_of(other), float(value)) for other, value in (top or {}).items()), key=lambda pair: -pair[1]
            )[:num_alternatives],
        )
        for token, logprob, top in places
    ]


def _text_rows(logprobs: Any) -> tuple[TokenLogprob, ...]:
    if not isinstance(logprobs, dict) or not isinstance(logprobs.get("tokens"), list):
        return ()
    places = zip(logprobs["tokens"], logprobs["token_logprobs"], logprobs.get("top_logprobs") or (), strict=False)
    return tuple(
        TokenLogprob(text=str(token), logprob=float(logprob or 0.0), alternatives=dict(top or {}))
        for token, logprob, top in places
    )


def _id_of(token: str) -> int:
    try:
        return int(str(token).removeprefix(_ID_LEAD))
    except ValueError:
        raise EngineError("log-probabilities of the server have no token ids") from None


def _error_of(status: int, text: str) -> EngineError:
    """What an answer without a 200 means."""
    said = f"{status}: {_shortened(text)}"
    if status == 429:
        return EngineBusy(said)
    if status in (401, 403):
        return EngineError(f"the server refuses the key ({said})")
    if status in (400, 422):
        return EngineRefused(said)
    return EngineUnavailable(said) if status >= 500 else EngineError(said)


def _error_in(error: Any) -> EngineError:
    """What an error means that comes as an event of a stream, after a 200: vLLM sends one with the code 500 to all who
    are being answered when its engine dies.
    """
    code = error.get("code") if isinstance(error, dict) else None
    text = str(error.get("message") or error) if isinstance(error, dict) else str(error)
    if isinstance(code, int):
        return _error_of(code, text)
    return EngineError(f"the server failed: {_shortened(text)}")


def _shortened(text: str) -> str:
    """The message of an error in one line; the whole text where it is not OpenAI's JSON."""
    try:
        found = nesting.loads(text)
        text = str(found["error"]["message"]) if isinstance(found, dict) else text
    except (ValueError, KeyError, TypeError):
        pass
    text = " ".join(text.split())
    return text if len(text) <= _MOST_CHARACTERS else text[: _MOST_CHARACTERS - 3] + "..."
