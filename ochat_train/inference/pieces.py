"""From the token ids that an engine computes to the pieces of an answer."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ochat_train.inference.engine import AnswerSettings, Finish, Piece, TokenLogprob
from ochat_train.inference.token_texts import TokenTexts
from ochat_train.system.answer_text import AnswerDecoder, StopTexts


@dataclass(frozen=True, kw_only=True)
class IdLogprob:
    """Log-probabilities of a place of an answer by ids. logprob: of the token there, nats. alternatives: the likeliest
    first, (id, logprob).
    """

    token: int
    logprob: float
    alternatives: Sequence[tuple[int, float]]


class PieceMaker:
    """Makes the pieces of one answer: decodes ids, ends at the end of turn, at a stop text or at the longest length.

    prompt_ids: [T]. stop_ids: ids that end the answer and are not part of its text.
    """

    def __init__(
        self, tokenizer: Any, prompt_ids: Sequence[int], settings: AnswerSettings, *, stop_ids: Collection[int]
    ) -> None:
        self._tokenizer, self._stop_ids = tokenizer, stop_ids
        self._decoder = AnswerDecoder(tokenizer, before=prompt_ids[-1] if prompt_ids else None)
        self._stop_texts = StopTexts(settings.stop)
        self._left = settings.max_new_tokens
        self.finished = False

    def add(self, ids: Sequence[int], rows: Sequence[IdLogprob] = ()) -> Piece:
        """The piece that new ids make. rows: one for each id, or none. `finished` tells whether it is the last."""
        texts, num_tokens, kept = [], 0, 0
        finish: Finish | None = None
        for token in ids:
            num_tokens += 1
            if token in self._stop_ids:
                finish = "stop"
                break
            kept += 1
            texts.append(self._stop_texts.add(self._decoder.add([token])))
            if self._stop_texts.stopped:
                finish = "stop"
                break
            if num_tokens >= self._left:
                finish = "length"
                break
        self._left -= num_tokens
        return self._piece("".join(texts), num_tokens, finish, rows[:kept])

    def end(self, finish: Finish) -> Piece:
        """The last piece, where the engine ended the answer by itself."""
        return self._piece("", 0, finish, ())

    def _piece(self, text: str, num_tokens: int, finish: Finish | None, rows: Sequence[IdLogprob]) -> Piece:
        if finish is not None:
            self.finished = True
            text += self._stop_texts.add(self._decoder.finish())
            if self._stop_texts.stopped:
                finish = "stop"
            text += self._stop_texts.finish()
        return Piece(
            text=text, num_tokens=num_tokens, finish=finish, logprobs=tuple(map(self._row, rows)) if rows else ()
        )

    @cached_property
    def _texts(self) -> TokenTexts:
        return TokenTexts(self._tokenizer)

    def _row(self, row: IdLogprob) -> TokenLogprob:
        alternatives: dict[str, float] = {}
        for token, logprob in row.alternatives:
            alternatives.setdefault(self._texts.of(token), logprob)  # a few tokens have the text of another
        return TokenLogprob(text=self._texts.of(row.token), logprob=row.logprob, alternatives=alternatives)
