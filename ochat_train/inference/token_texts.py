"""The text of a single token, as an answer holds it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import Any

from ochat_train.system.answer_text import decoding

_INCOMPLETE = "\ufffd"  # what decoding writes for bytes that are not a whole character
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")  # a byte in vocabularies like SentencePiece's


class TokenTexts:
    """Texts of tokens of a tokenizer. Those of an answer, joined, are its text with its control tokens.

    A token may hold a part of a character only. Its bytes are then written as Python's `surrogateescape` writes them,
    so that `text.encode("utf-8", "surrogateescape")` gives them back, and tokens with different bytes differ.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer, self._decode = tokenizer, decoding(tokenizer)
        # Some tokenizers drop the first space of whatever they decode, so there is always a token before.
        self._before = tokenizer.encode(":", add_special_tokens=False)[-1:]
        self._length_before = len(self._decode(self._before))
        self._found: dict[int, str] = {}

    def of(self, token: int) -> str:
        """The text of a token."""
        text = self._found.get(token)
        if text is None:
            text = self._found[token] = self._text(token)
        return text

    def _text(self, token: int) -> str:
        text = self._decode([*self._before, token])[self._length_before :]
        if _INCOMPLETE not in text:
            return text
        data = _bytes_of(str(self._tokenizer.convert_ids_to_tokens(token)))
        if data is None or data.decode("utf-8", "replace") != text:
            return text
        return data.decode("utf-8", "surrogateescape")


def _bytes_of(name: str) -> bytes | None:
    """The bytes of a token by its name in the vocabulary, None where the name does not tell them."""
    if (match := _BYTE.fullmatch(name)) is not None:
        return bytes([int(match[1], 16)])
    found = [_byte_level().get(character) for character in name]
    return None if None in found else bytes(byte for byte in found if byte is not None)


@cache
def _byte_level() -> Mapping[str, int]:
    """Character -> byte, as byte-level vocabularies (GPT-2's) write bytes."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return {character: byte for byte, character in bytes_to_unicode().items()}
