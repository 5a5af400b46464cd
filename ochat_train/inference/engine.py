"""What computes answers: one interface, whether the model is in this process or behind another server.

`ochat serve`, `ochat chat` and `ochat eval` ask an engine and nothing else. An engine gets the ids of a prompt, never
its text, so that no engine can read what a person typed as a control token. It gives back the text as the model wrote
it: the space that begins every message is still there (`inference.answers` takes it off), and the end of turn is not.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

Finish = Literal["stop", "length"]
# Below this all but the likeliest token have a chance of 0 or nearly 0, and dividing by it gives infinities: greedy.
SMALLEST_TEMPERATURE = 0.001


@dataclass(frozen=True, kw_only=True)
class AnswerSettings:
    """How one answer is made.

    max_new_tokens: of the answer, at least 1. temperature: 0 for greedy. top_p: in (0, 1]. seed: None for a random one;
    the same seed gives the same answer of one engine. stop: texts that end the answer and are not part of it.
    num_logprobs: None for no log-probabilities, otherwise how many alternatives of each token. response_format: as in
    OpenAI's API, None for free text. adapter: the engine's name of a LoRA adapter, None for the model itself.
    """

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    num_logprobs: int | None = None
    response_format: Mapping[str, Any] | None = None
    adapter: str | None = None


@dataclass(frozen=True, kw_only=True)
class TokenLogprob:
    """A token of an answer. logprob: natural logarithm. alternatives: text -> logprob, the likeliest first.

    Bytes that are not a whole character are in a text as `surrogateescape` writes them; see `TokenTexts`.
    """

    text: str
    logprob: float
    alternatives: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A piece of an answer, in order.

    text: may be empty, never half a character. num_tokens: of the answer, that this piece adds; the end of turn is one.
    finish: why the answer ended, in its last piece, otherwise None. logprobs: a row for each of the tokens but the end
    of turn, empty where none were asked for.
    """

    text: str
    num_tokens: int
    finish: Finish | None = None
    logprobs: tuple[TokenLogprob, ...] = ()


def joined(pieces: Sequence[Piece]) -> Piece:
    """Pieces that follow each other, at least one, as one."""
    if len(pieces) == 1:
        return pieces[0]
    return Piece(
        text="".join(piece.text for piece in pieces),
        num_tokens=sum(piece.num_tokens for piece in pieces),
        finish=pieces[-1].finish,
        logprobs=tuple(row for piece in pieces for row in piece.logprobs),
    )


async def cancelled(task: asyncio.Task[None] | None) -> None:
    """Cancel a task that an engine runs beside its answers, and wait for its end."""
    if task is not None:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def ended(tasks: Sequence[asyncio.Future[Any]]) -> None:
    """Cancel tasks and wait until they have cleaned up."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


class EngineError(Exception):
    """An engine failed at an answer. The text is for the person who runs the server, not for its clients."""


class EngineUnavailable(EngineError):
    """The engine is not running (yet, or any more); asking again later may help."""


class EngineBusy(EngineError):
    """The engine takes no more requests at the moment; asking again later helps."""


class EngineRefused(EngineError):
    """The engine does not take this request, and will not when it is asked again."""


class Engine(Protocol):
    """Computes answers."""

    @property
    def name(self) -> str:
        """Short, for logs and results: `transformers`, for example."""
        ...

    @property
    def versions(self) -> Mapping[str, str]:
        """Package -> version, for results."""
        ...

    @property
    def context_tokens(self) -> int:
        """How many tokens prompt and answer may have together."""
        ...

    @property
    def unsupported(self) -> Mapping[str, str]:
        """Field of `AnswerSettings` -> why this engine cannot do it. Whoever asks refuses such requests by name."""
        ...

    async def start(self) -> None:
        """Load the model, or start the server behind it, and wait until it answers.

        Raises UserError where that cannot work.
        """
        ...

    async def close(self) -> None:
        """End all answers and free memory, processes and connections. May be called twice."""
        ...

    def is_ready(self) -> bool:
        """Whether a request would be answered now; cheap, called for every `/health`."""
        ...

    def stream(self, prompt_ids: Sequence[int], settings: AnswerSettings) -> AsyncIterator[Piece]:
        """The pieces of one answer. Closing the iterator early (`aclose`) ends the computation.

        prompt_ids: [T], T + max_new_tokens <= context_tokens. Raises EngineError and its kinds, at once or while it is
        read.
        """
        ...
