"""`POST /v1/chat/completions`: from a checked request to its response, whole or as a stream."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field

from starlette.types import Receive, Scope, Send

from ochat_train.inference.engine import AnswerSettings, Engine, Piece, ended
from ochat_train.serving.admission import Admission
from ochat_train.serving.answering import (
    Answer,
    ClientLeft,
    engine_failed,
    pieces,
    settings_of_choice,
    together,
    unless_left,
)
from ochat_train.serving.errors import ApiError, json_response
from ochat_train.serving.events import DONE, Events, Head, completion, error_event, usage
from ochat_train.serving.metrics import ServerMetrics
from ochat_train.serving.request_log import RequestRecord
from ochat_train.serving.requests import ChatRequest
from ochat_train.serving.sending import StreamSender
from ochat_train.serving.served import Chosen
from ochat_train.system.messages import print_message

_SECONDS_FOR_ERROR = 2.0


@dataclass(frozen=True, kw_only=True)
class Job:
    """A request that can be answered. settings: of the first of its answers. deadline: of `time.perf_counter`."""

    request: ChatRequest
    chosen: Chosen
    prompt_ids: Sequence[int]
    settings: AnswerSettings
    head: Head
    record: RequestRecord
    started: float
    deadline: float
    keeps_texts: bool

    @property
    def num_answers(self) -> int:
        """`n` of the request."""
        return self.request.n or 1


@dataclass
class ChatResponse:
    """An ASGI response. Whatever happens, the engine's work ends before it returns."""

    engine: Engine
    admission: Admission
    metrics: ServerMetrics
    job: Job
    answers: list[Answer] = field(init=False)
    _has_places: bool = False

    def __post_init__(self) -> None:
        self.answers = [Answer() for _ in range(self.job.num_answers)]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer. Raises ApiError where nothing was sent yet, and ClientLeft."""
        work = self._stream(send) if self.job.request.stream else self._whole(scope, receive, send)
        try:
            # after its deadline a stream only has to send the error: who does not read it by then never will
            await unless_left(receive, work, seconds=self._seconds_left() + _SECONDS_FOR_ERROR)
        except ClientLeft:
            for answer in self.answers:
                answer.finish = answer.finish or "cancelled"
            raise
        finally:
            self._count()

    def _seconds_left(self) -> float:
        return max(self.job.deadline - time.perf_counter(), 0.0)

    def _too_slow(self) -> ApiError:
        seconds = self.job.deadline - self.job.started
        text = f"the answer was not complete within {seconds:g} seconds; ask for fewer tokens, or again later"
        return ApiError(504, text, code="timeout")

    @asynccontextmanager
    async def _places(self) -> AsyncIterator[None]:
        async with self.admission.places(self.job.num_answers, seconds=self._seconds_left()):
            self._has_places = True
            yield

    async def _whole(self, scope: Scope, receive: Receive, send: Send) -> None:
        job = self.job
        async with self._places():
            try:
                async with asyncio.timeout(self._seconds_left()):
                    await together([self._collect(number) for number in range(job.num_answers)])
            except TimeoutError:
                raise self._too_slow() from None
        logprobs = bool(job.request.logprobs)
        document = completion(job.head, self.answers, len(job.prompt_ids), logprobs=logprobs)
        await json_response(document)(scope, receive, send)

    async def _collect(self, number: int) -> None:
        async with aclosing(self._pieces(number)) as stream:
            async for piece in stream:
                self.answers[number].add(piece, keeps_text=True)

    def _pieces(self, number: int) -> AsyncGenerator[Piece, None]:
        return pieces(self.engine, self.job.prompt_ids, settings_of_choice(self.job.settings, number))

    async def _stream(self, send: Send) -> None:
        """Send events; see `StreamSender`."""
        joins = not self.job.request.logprobs
        sender = StreamSender(send, self._events(), num_answers=len(self.answers), joins=joins)
        producer = asyncio.ensure_future(self._produce(sender))
        timer = asyncio.get_running_loop().call_later(self._seconds_left(), sender.fail, self._too_slow())
        try:
            await sender.sent()
            counts = usage(len(self.job.prompt_ids), self.answers)
            end = (self._events().usage(counts) if self._with_usage else b"") + DONE
        except ApiError as error:
            if not sender.has_begun:
                raise
            self.job.record.error = error.code
            log_cause(error, self.job.head.id)
            end = error_event(error.body())
        finally:
            timer.cancel()
            await ended([producer])
        await send({"type": "http.response.body", "body": end})

    async def _produce(self, sender: StreamSender) -> None:
        """Bring the pieces. A client that reads slowly holds no place: nothing here waits for it."""
        try:
            async with self._places():
                await together([self._feed(sender, number) for number in range(self.job.num_answers)])
        except ApiError as error:
            sender.fail(error)
        except Exception as error:  # a bug of an engine must not leave the client waiting
            failed = engine_failed()
            failed.__cause__ = error
            sender.fail(failed)

    async def _feed(self, sender: StreamSender, number: int) -> None:
        answer, keeps_text = self.answers[number], self.job.keeps_texts
        async with aclosing(self._pieces(number)) as stream:
            async for piece in stream:
                answer.add(piece, keeps_text=keeps_text)
                sender.put(number, piece)

    def _events(self) -> Events:
        return Events(self.job.head, logprobs=bool(self.job.request.logprobs), with_usage=self._with_usage)

    @property
    def _with_usage(self) -> bool:
        options = self.job.request.stream_options
        return bool(options and options.include_usage)

    def _count(self) -> None:
        job, labels = self.job, (self.job.chosen.model.name, self.job.chosen.label)
        self._fill_record()
        if not self._has_places:
            return
        self.metrics.prompt_tokens.labels(*labels).inc(len(job.prompt_ids))
        for answer in self.answers:
            self.metrics.answers.labels(*labels, answer.finish or "error").inc()
            self.metrics.answer_tokens.labels(*labels).inc(answer.num_tokens)
            if answer.first_token_at is None or answer.last_token_at is None:
                continue
            self.metrics.first_token_seconds.labels(*labels).observe(answer.first_token_at - job.started)
            if answer.num_tokens > 1:
                seconds = (answer.last_token_at - answer.first_token_at) / (answer.num_tokens - 1)
                self.metrics.token_seconds.labels(*labels).observe(seconds)

    def _fill_record(self) -> None:
        record = self.job.record
        record.answer_tokens = sum(answer.num_tokens for answer in self.answers)
        record.finish = [answer.finish or "error" for answer in self.answers]
        firsts = [answer.first_token_at for answer in self.answers if answer.first_token_at is not None]
        if firsts:
            record.seconds_to_first_token = round(min(firsts) - self.job.started, 4)
        if self.job.keeps_texts and record.texts is not None:
            record.texts["answers"] = [answer.text for answer in self.answers]


def log_cause(error: ApiError, request_id: str) -> None:
    """Say why something failed to the person who runs the server."""
    if error.__cause__ is not None:
        with suppress(OSError):
            print_message(f"{request_id}: {type(error.__cause__).__name__}: {error.__cause__}")
