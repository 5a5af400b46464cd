"""The text of an answer, from token ids: whole, or while they arrive.

A message of every template begins with one space that belongs to the prompt (`Assistant: low`), so an answer's text is
what follows it. That space is taken off once, here, for `ochat generate`, for the samples of a training, for serving
and for evaluation alike.

Some tokenizers (those of SentencePiece) drop the first space of whatever they decode, others do not. So ids are decoded
together with the token before them, the last one of the prompt, and every tokenizer gives the text as it follows the
prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any

_INCOMPLETE = "\ufffd"  # what decoding writes for bytes that are not a whole character (yet)


def answer_text(tokenizer: Any, ids: Sequence[int], *, before: int | None, stop_ids: Collection[int]) -> str:
    """The text of a whole answer, up to the first of `stop_ids` and without the space that begins every message.

    ids: [T] of the answer. before: the last id of its prompt, None where there is none.
    """
    decoder = AnswerDecoder(tokenizer, before=before)
    end = next((position for position, token in enumerate(ids) if token in stop_ids), len(ids))
    return FirstSpace().add(decoder.add(ids[:end]) + decoder.finish())


class AnswerDecoder:
    """Text of ids that arrive in pieces: never half a character, and no control tokens.

    All pieces together are the text of all ids, whatever their sizes.
    """

    def __init__(self, tokenizer: Any, *, before: int | None) -> None:
        self._decode, self._control_ids = decoding(tokenizer), control_ids(tokenizer)
        # the last ids whose text was given, or is the prompt's, and those whose text was not
        self._ids = [] if before is None else [before]
        self._num_given = len(self._ids)
        self._given_length = len(self._decode(self._ids))  # of the text of the former, in characters

    def add(self, ids: Sequence[int]) -> str:
        """The text that these ids complete.

        One id after the other: some tokenizers decode a whole character differently once broken bytes follow it, and
        what was given stays.
        """
        if len(ids) == 1:  # nearly always: an engine gives one after the other
            return "" if ids[0] in self._control_ids else self._add(ids[0])
        return "".join([self._add(token) for token in ids if token not in self._control_ids])

    def finish(self) -> str:
        """The rest, where the last ids were only a part of a character."""
        return self._advance(self._decode(self._ids))

    def _add(self, token: int) -> str:
        self._ids.append(token)
        text = self._decode(self._ids)
        if text.endswith(_INCOMPLETE) or len(text) <= self._given_length:
            return ""
        return self._advance(text)

    def _advance(self, text: str) -> str:
        new = text[self._given_length :]
        del self._ids[: self._num_given]
        self._num_given = len(self._ids)
        self._given_length = len(self._decode(self._ids))
        return new


class FirstSpace:
    """Takes the space that begins a message off its text, which may arrive in pieces."""

    def __init__(self) -> None:
        self.begun = False

    def add(self, text: str) -> str:
        """The text without that space."""
        if self.begun or not text:
            return text
        self.begun = True
        return text.removeprefix(" ")


class StopTexts:
    """Ends a text before the first of some texts. What might become one of them is held back until it cannot.

    The space that begins a message is passed on without being searched: a stop text is about the message.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = tuple(stop)
        self._held, self._begun, self.stopped = "", False, False

    def add(self, text: str) -> str:
        """The text that can be given on now. `stopped` tells whether a stop text was found; nothing follows then."""
        if self.stopped or not text:
            return ""
        if not self._stop:
            return text
        lead = ""
        if not self._begun:
            self._begun = True
            lead, text = (" ", text[1:]) if text.startswith(" ") else ("", text)
        text = self._held + text
        found = [position for position in (text.find(stop) for stop in self._stop) if position >= 0]
        if found:
            self._held, self.stopped = "", True
            return lead + text[: min(found)]
        held = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - held :]
        return lead + text[: len(text) - held]

    def finish(self) -> str:
        """What was held back, where the text ends without a stop text."""
        held, self._held = self._held, ""
        return held


def decoding(tokenizer: Any) -> Callable[[Sequence[int]], str]:
    """What writes ids as text, as the model wrote it."""
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

    kind, backend = type(tokenizer), getattr(tokenizer, "backend_tokenizer", None)
    names = [(PreTrainedTokenizerBase, "decode"), (PreTrainedTokenizerFast, "_decode")]
    if backend is not None and all(getattr(kind, name, None) is getattr(base, name) for base, name in names):
        # the same text in a tenth of the time, which every token of every answer takes twice
        return partial(backend.decode, skip_special_tokens=False)

    def decode(ids: Sequence[int]) -> str:
        # "cleaning up" joins a sign to the word before it: not what the model wrote, and it would change given text
        return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))

    return decode


def control_ids(tokenizer: Any) -> frozenset[int]:
    """Ids of tokens that are never text: the end of turn, for example."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return frozenset({*tokenizer.all_special_ids, *(number for number, token in added.items() if token.special)})


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of the text begin the stop text."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if stop.startswith(text[len(text) - size :])), 0)
