"""Answers of an engine as their readers want them: without the space that begins every message."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, replace

from ochat_train.inference.engine import EngineError, Finish, Piece, TokenLogprob
from ochat_train.system.answer_text import FirstSpace


@dataclass(frozen=True, kw_only=True)
class WholeAnswer:
    """An answer that has ended. num_tokens, finish, logprobs: as those of `Piece`, of the whole answer."""

    text: str
    num_tokens: int
    finish: Finish
    logprobs: tuple[TokenLogprob, ...]


async def message_pieces(pieces: AsyncIterator[Piece]) -> AsyncIterator[Piece]:
    """The pieces of `Engine.stream`, without the space that begins every message, which belongs to the prompt.

    Closing this iterator early closes the engine's, which ends the computation.
    """
    space, rows, has_begun = FirstSpace(), FirstSpace(), False
    async with aclosing(pieces):  # type: ignore[type-var]  # every engine's iterator is an async generator
        async for piece in pieces:
            if has_begun and not piece.logprobs:
                yield piece
                continue
            has_begun = has_begun or bool(piece.text)
            logprobs = piece.logprobs and tuple(_of_message(row, rows) for row in piece.logprobs)
            text = space.add(piece.text)
            yield Piece(text=text, num_tokens=piece.num_tokens, finish=piece.finish, logprobs=logprobs)


async def whole_answer(pieces: AsyncIterator[Piece]) -> WholeAnswer:
    """All of an answer, without the space that begins it. Raises EngineError for an answer that never ended."""
    parts: list[Piece] = []
    async with aclosing(message_pieces(pieces)) as found:  # type: ignore[type-var]
        async for piece in found:
            parts.append(piece)
    if not parts or (finish := parts[-1].finish) is None:
        raise EngineError("the answer ended without a reason")
    return WholeAnswer(
        text="".join(piece.text for piece in parts),
        num_tokens=sum(piece.num_tokens for piece in parts),
        finish=finish,
        logprobs=tuple(row for piece in parts for row in piece.logprobs),
    )


def _of_message(row: TokenLogprob, space: FirstSpace) -> TokenLogprob:
    """A row as the message has it: the token that begins it, and what could have been there, without the space."""
    if space.begun:
        return row
    alternatives: dict[str, float] = {}
    for text, logprob in row.alternatives.items():
        alternatives.setdefault(text.removeprefix(" "), logprob)  # the likelier of ` a` and `a`
    return replace(row, text=space.add(row.text), alternatives=alternatives)
