"""Asks many questions at once, keeps every answer, and tries again where there was none."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from data_pipeline.errors import UserError
from ochat_train.suites.store import AnswerStore
from ochat_train.suites.suite import Answer, Finish, Message

TEMPORARY_STATUSES = frozenset({408, 409, 425, 429, 500, 502, 503, 504})  # of HTTP: asking again may help
TOO_LONG = "longer than the context"  # the reason of what was never asked
Sleep = Callable[[float], Awaitable[None]]


@dataclass(frozen=True, kw_only=True)
class TurnSettings:
    """How an answer to one turn is made. temperature: 0 for greedy."""

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A conversation as a respondent asks it.

    fingerprint: a text that is the same only for the same prompt of the same model: ids, or messages. room: how many
    tokens an answer may have, None where only the server knows. content: what the respondent itself needs.
    """

    fingerprint: str
    room: int | None
    content: Any


@dataclass(frozen=True, kw_only=True)
class TurnAnswer:
    """An answer to one turn. num_tokens: None where it is not known."""

    text: str
    num_tokens: int | None
    finish: Finish


class NoAnswer(Exception):
    """There is no answer. reason: short, and counted. is_temporary: whether to ask again, after `wait_seconds` if the
    server says so.
    """

    def __init__(self, reason: str, *, is_temporary: bool, wait_seconds: float | None = None) -> None:
        super().__init__(reason)
        self.reason, self.is_temporary, self.wait_seconds = reason, is_temporary, wait_seconds


class TooLong(NoAnswer):
    """A conversation for which the context has no room. Such a question is not scored, and named on its own."""

    def __init__(self) -> None:
        super().__init__(TOO_LONG, is_temporary=False)


class Respondent(Protocol):
    """A model that answers: an export through an engine, or a server at a URL."""

    def prompt(self, messages: Sequence[Message], condition: str | None) -> Prompt:
        """How the conversation is asked under a condition, None for the model's own. Raises UserError."""
        ...

    async def answer(self, prompt: Prompt, settings: TurnSettings) -> TurnAnswer:
        """One answer. Raises NoAnswer."""
        ...


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is asked once, in all its turns.

    key: of the store. before: messages ahead of the first turn. first: the prompt of the first turn, if it is made
    already. about: what the store's line says beside the answer.
    """

    key: str
    before: tuple[Message, ...]
    turns: tuple[str, ...]
    condition: str | None
    settings: TurnSettings
    first: Prompt | None = None
    about: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How often and how long to try. num_tries: of a turn. Waits double from `first_wait_seconds` to
    `longest_wait_seconds`, unless the server names a time, which counts up to `longest_asked_wait_seconds`.
    timeout_seconds: of one try.
    """

    num_tries: int = 6
    first_wait_seconds: float = 1.0
    longest_wait_seconds: float = 30.0
    longest_asked_wait_seconds: float = 120.0
    timeout_seconds: float = 600.0

    def wait_seconds(self, num_failures: int, asked: float | None) -> float:
        """How long to wait after so many failures in a row."""
        if asked is not None:
            return min(max(asked, 0.0), self.longest_asked_wait_seconds)
        return min(self.first_wait_seconds * 2.0 ** (num_failures - 1), self.longest_wait_seconds)


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A question without an answer. reason: of the last try. failed_tries: reason -> tries, the last one among them."""

    reason: str
    failed_tries: Mapping[str, int]


Failures = Mapping[str, Failure]  # by the key of the request


class Progress(Protocol):
    """Shows how far it is."""

    def done(self) -> None:
        """One more question has its answer, or has failed for good."""
        ...


async def ask_all(
    respondent: Respondent,
    requests: Sequence[Request],
    store: AnswerStore,
    *,
    num_parallel: int,
    patience: Patience,
    progress: Progress | None = None,
    sleep: Sleep = asyncio.sleep,
) -> Failures:
    """Ask everything that the store has no answer to, `num_parallel` at a time.

    Returns what got no answer. Cancelling it ends the answers that are being made; finished ones are in the store.
    Raises UserError where the model no longer answers at all: after `num_parallel` + 8 questions in a row without an
    answer.
    """
    asking = _Asking(respondent, store, patience, progress, sleep, give_up_after=num_parallel + 8)
    waiting = iter([request for request in requests if store.get(request.key) is None])
    workers = [asyncio.create_task(asking.work(waiting)) for _ in range(num_parallel)]
    try:
        await asyncio.gather(*workers)
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
    return asking.failures


class _Asking:
    def __init__(
        self,
        respondent: Respondent,
        store: AnswerStore,
        patience: Patience,
        progress: Progress | None,
        sleep: Sleep,
        *,
        give_up_after: int,
    ) -> None:
        self._respondent, self._store, self._patience = respondent, store, patience
        self._progress, self._sleep, self._give_up_after = progress, sleep, give_up_after
        self.failures: dict[str, Failure] = {}
        self._failed_in_a_row = 0

    async def work(self, waiting: Iterator[Request]) -> None:
        for request in waiting:
            failed_tries: Counter[str] = Counter()
            try:
                answer = await self._answer(request, failed_tries)
            except NoAnswer as error:
                self.failures[request.key] = Failure(reason=error.reason, failed_tries=dict(failed_tries))
                self._count_failure(error)
            else:
                self._failed_in_a_row = 0
                self._store.put(request.key, answer, **request.about)
            if self._progress is not None:
                self._progress.done()

    def _count_failure(self, error: NoAnswer) -> None:
        if not error.is_temporary:  # it says something of the question, and nothing of the model
            return
        self._failed_in_a_row += 1
        if self._failed_in_a_row >= self._give_up_after:
            raise UserError(
                "the model",
                f"gave no answer to {self._failed_in_a_row} questions in a row, the last time because: {error.reason}",
                "see to it, and start the same command again: finished answers are kept",
            )

    async def _answer(self, request: Request, failed_tries: Counter[str]) -> Answer:
        messages = list(request.before)
        answers: list[TurnAnswer] = []
        started = time.time()
        for turn in request.turns:
            messages.append({"role": "user", "content": turn})
            answers.append(await self._turn(messages, request, failed_tries))
            messages.append({"role": "assistant", "content": answers[-1].text})
        counts = [answer.num_tokens for answer in answers]
        return Answer(
            texts=tuple(answer.text for answer in answers),
            num_tokens=None if None in counts else sum(count for count in counts if count is not None),
            finish="length" if any(answer.finish == "length" for answer in answers) else "stop",
            started=round(started, 3),
            ended=round(time.time(), 3),
            failed_tries=dict(failed_tries),
            had_less_room=any(_had_less_room(answer, request.settings) for answer in answers),
        )

    async def _turn(self, messages: Sequence[Message], request: Request, failed_tries: Counter[str]) -> TurnAnswer:
        """The answer to the last message. failed_tries: counted up."""
        is_first = len(messages) == len(request.before) + 1
        prompt = request.first if is_first and request.first else self._respondent.prompt(messages, request.condition)
        settings = _fitted(request.settings, prompt)
        for num_tries in range(1, self._patience.num_tries + 1):
            try:
                return await self._try(prompt, settings)
            except NoAnswer as error:
                failed_tries[error.reason] += 1
                if not error.is_temporary or num_tries == self._patience.num_tries:
                    raise
                await self._sleep(self._patience.wait_seconds(num_tries, error.wait_seconds))
        raise AssertionError("the last try returns or raises")

    async def _try(self, prompt: Prompt, settings: TurnSettings) -> TurnAnswer:
        with contextlib.suppress(asyncio.TimeoutError):
            return await asyncio.wait_for(
                self._respondent.answer(prompt, settings), timeout=self._patience.timeout_seconds
            )
        raise NoAnswer(f"no answer within {self._patience.timeout_seconds:g} seconds", is_temporary=True)


def _had_less_room(answer: TurnAnswer, settings: TurnSettings) -> bool:
    """Whether an answer was cut off before the length that was asked for. A server may not count tokens."""
    return answer.finish == "length" and answer.num_tokens is not None and answer.num_tokens < settings.max_new_tokens


def _fitted(settings: TurnSettings, prompt: Prompt) -> TurnSettings:
    """The settings with no more tokens than there is room for. Raises TooLong where there is none."""
    if prompt.room is None or prompt.room >= settings.max_new_tokens:
        return settings
    if prompt.room < 1:
        raise TooLong
    return replace(settings, max_new_tokens=prompt.room)
