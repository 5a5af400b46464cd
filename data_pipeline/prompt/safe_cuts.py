"""Where a long text can be cut so that the pieces, tokenized one by one, have exactly the ids of the whole text.

A tokenizer takes 40 to 100 bytes of memory for each byte of a text. So a long text is tokenized in pieces, and only
their ids are kept. A place between two characters is used only where it is certain that nothing of the tokenizer
reaches over it:

- its normalizer changes each of the two on its own, and no added token holds both;
- its pre-tokenizer ends a piece there (`parted_pairs.py`), or it has one piece for the whole text, and then no token
  of the vocabulary holds both: byte pair encoding merges only what becomes a token, so it merges nothing there, and the
  merges of the two sides do not depend on each other.

A tokenizer with a part that is not named here is never cut: then the whole text is tokenized at once.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any

from data_pipeline.prompt.parted_pairs import Between, ParsedPattern, UnknownPatternError

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"  # of `ByteLevel`
_BYTE_SYMBOLS = {" ": "\u0120", "\n": "\u010a"}  # of `ByteLevel`; other ASCII characters that can be seen stay
_MORE_RIGHT = "，。、！？；："  # beside ASCII: characters that never join the one before them

Image = Callable[[str], str | None]  # what becomes of a character; None where that is not certain


class UnknownTokenizerError(ValueError):
    """A tokenizer with a part that cannot be judged."""


class SafeCuts:
    """The places at which texts can be cut for a tokenizer. backend: its `tokenizer.json`, without post-processor.

    rest: the tokenizer for every piece but the first: what the tokenizer puts before a text is left out.
    Raises UnknownTokenizerError for a tokenizer that cannot be judged.
    """

    def __init__(self, backend: str) -> None:
        description = json.loads(backend)
        try:
            self._model = _checked_model(description["model"])
            self._has_prefix = False
            self._normalize = self._normalizer(description.get("normalizer"))
            self._stages = list(self._pre_tokenizer(description.get("pre_tokenizer")))
        except (UnknownPatternError, KeyError, TypeError) as error:
            raise UnknownTokenizerError(str(error)) from None
        added = [token for token in description["added_tokens"] if not token["special"]]
        if any(token["lstrip"] or token["rstrip"] or token["single_word"] for token in added):
            raise UnknownTokenizerError("an added token takes the space around it")
        if added and self._has_prefix:
            raise UnknownTokenizerError("a prefix before the text after each added token")
        self._added = [form for token in description["added_tokens"] for form in self._forms(token["content"])]
        self._known: dict[str, bool] = {}
        self.rest = json.dumps(_without_prefix(description))

    def pieces(self, text: str, *, num_characters: int, first_least: int = 1) -> Iterator[str]:
        """The text in pieces of at most so many characters, more where there is no safe place.

        first_least: characters that the first piece has at least.
        """
        start = 0
        while len(text) - start > num_characters:
            end = self._place(text, start + (1 if start else first_least), start + num_characters)
            yield text[start:end]
            start = end
        if start < len(text):
            yield text[start:]

    def _place(self, text: str, least: int, wanted: int) -> int:
        """The last safe place from `least` to `wanted`, or the first one after; the text's end where there is none."""
        before = range(wanted, least - 1, -1)
        after = range(wanted + 1, len(text))
        for places in (before, after):
            for place in places:
                if self.is_safe(text, place):
                    return place
        return len(text)

    def is_safe(self, text: str, place: int) -> bool:
        """Whether a text may be cut before its character `place`."""
        pair, after = text[place - 1 : place + 1], text[place + 1 : place + 2]
        known = self._known.get(pair)
        if known is None:
            known = self._known[pair] = self._judge(pair[0], pair[1])
        # what joins the character before it makes another one of that
        return known and (after.isascii() or unicodedata.category(after)[0] != "M")

    def _judge(self, left: str, right: str) -> bool:
        if not (_is_plain(left) and _is_plain(right) and (right.isascii() or right in _MORE_RIGHT)):
            return False
        images = self._normalize(left), self._normalize(right)
        for stage in self._stages:
            if images[0] is None or images[1] is None:
                return False
            if any(left + right in token or images[0] + images[1] in token for token in self._added):
                return False
            between = stage.between(images[0], images[1])
            if between is not Between.KEEPS:
                return between is Between.PARTS
            images = stage.image(images[0]), stage.image(images[1])
        if images[0] is None or images[1] is None:
            return False
        if self._model.get("ignore_merges"):  # a piece that is a token would be one, though it is not in the whole text
            return False
        return images[0] + images[1] not in self._joined and {*images} <= self._model["vocab"].keys()

    def _forms(self, token: str) -> set[str]:
        """An added token as it may be looked for: before the text is normalized, or after."""
        forms = {unicodedata.normalize(form, token) for form in ("NFC", "NFD", "NFKC", "NFKD")} | {token}
        images = {"".join(self._normalize(character) or character for character in form) for form in forms}
        return forms | images

    @cached_property
    def _joined(self) -> frozenset[str]:
        """All pairs of characters that some token holds."""
        vocab = self._model["vocab"]
        return frozenset(token[at : at + 2] for token in vocab for at in range(len(token) - 1))

    # ---- the parts of a tokenizer ----

    def _normalizer(self, part: Mapping[str, Any] | None) -> Image:
        kind = None if part is None else part["type"]
        if part is None or kind in ("NFC", "NFD", "NFKC", "NFKD"):
            return lambda character: character  # a plain character is its own form in all of them
        if kind == "Sequence":
            return _one_after_the_other([self._normalizer(inner) for inner in part["normalizers"]])
        if kind == "Prepend":
            self._has_prefix = True
            return lambda character: character
        if kind == "Replace" and "String" in part["pattern"]:
            return _replaced(part["pattern"]["String"], part["content"])
        if kind == "Lowercase":
            return lambda character: character.lower() if len(character.lower()) == 1 else None
        raise UnknownTokenizerError(f"normalizer {kind}")

    def _pre_tokenizer(self, part: Mapping[str, Any] | None, *, is_first: bool = True) -> Iterator[_Stage]:
        kind = None if part is None else part["type"]
        if part is None:
            yield _Stage()
        elif kind == "Sequence":
            for number, inner in enumerate(part["pretokenizers"]):
                yield from self._pre_tokenizer(inner, is_first=is_first and not number)
        elif kind == "ByteLevel":
            self._note_prefix(part["add_prefix_space"], is_first)
            yield _Pattern(_GPT2) if part.get("use_regex", True) else _Stage()
            yield _Stage(_byte_symbol)
        elif kind == "Metaspace":
            self._note_prefix(part.get("prepend_scheme", "always") == "always", is_first)
            yield _Stage(_replaced(" ", part["replacement"]))
            yield _PartsBefore(part["replacement"]) if part.get("split", True) else _Stage()
        elif kind == "Digits":
            yield _Digits(is_individual=part["individual_digits"])
        elif kind == "Split" and not part["invert"] and "String" in part["pattern"]:
            yield _Literal(part["pattern"]["String"])
        elif kind == "Split" and not part["invert"] and part["behavior"] == "Isolated":
            yield _Pattern(part["pattern"]["Regex"])
        else:
            raise UnknownTokenizerError(f"pre-tokenizer {kind}")

    def _note_prefix(self, has_prefix: bool, is_first: bool) -> None:
        if has_prefix and not is_first:
            raise UnknownTokenizerError("a prefix before each piece")
        self._has_prefix = self._has_prefix or has_prefix


class _Stage:
    """A step of the pre-tokenizer. This one cuts nowhere."""

    def __init__(self, image: Image = lambda character: character) -> None:
        self.image = image

    def between(self, left: str, right: str) -> Between:
        """What the step does between two characters."""
        return Between.KEEPS


class _Pattern(_Stage):
    """Every match of a pattern is a piece."""

    def __init__(self, pattern: str) -> None:
        super().__init__()
        self._pattern = ParsedPattern(pattern)

    def between(self, left: str, right: str) -> Between:
        return self._pattern.between(left, right)


class _Literal(_Stage):
    """Cuts around a text, which may join a neighbour."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self._text = text

    def between(self, left: str, right: str) -> Between:
        return Between.UNKNOWN if left in self._text or right in self._text else Between.KEEPS


class _PartsBefore(_Stage):
    """A piece begins at each of a character (the space of `Metaspace`)."""

    def __init__(self, character: str) -> None:
        super().__init__()
        self._character = character

    def between(self, left: str, right: str) -> Between:
        if left == self._character:
            return Between.UNKNOWN
        return Between.PARTS if right == self._character else Between.KEEPS


class _Digits(_Stage):
    """Digits are pieces: each of them, or those that follow each other."""

    def __init__(self, *, is_individual: bool) -> None:
        super().__init__()
        self._is_individual = is_individual

    def between(self, left: str, right: str) -> Between:
        digits = [unicodedata.category(character)[0] == "N" for character in (left, right)]
        if all(digits):
            return Between.PARTS if self._is_individual else Between.UNKNOWN
        return Between.PARTS if any(digits) else Between.KEEPS


def _checked_model(model: Mapping[str, Any]) -> Mapping[str, Any]:
    is_plain = not any(model.get(key) for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"))
    if model["type"] != "BPE" or not is_plain:
        raise UnknownTokenizerError(f"model {model['type']}")
    return model


def _is_plain(character: str) -> bool:
    """A character that no Unicode normalization changes or joins with another, and whose kind is beyond doubt."""
    if character.isascii():
        return character.isprintable() or character == "\n"
    if character in _MORE_RIGHT:
        return True
    is_letter = unicodedata.category(character) in ("Ll", "Lu", "Lo") and "HANGUL" not in unicodedata.name(
        character, ""
    )
    return is_letter and all(unicodedata.is_normalized(form, character) for form in ("NFC", "NFD", "NFKC", "NFKD"))


def _replaced(text: str, content: str) -> Image:
    """What `Replace` makes of a character: certain where only whole single characters are replaced."""

    def image(character: str) -> str | None:
        if character not in text:
            return character
        return content if character == text and len(content) == 1 else None

    return image


def _one_after_the_other(images: list[Image]) -> Image:
    def image(character: str) -> str | None:
        found: str | None = character
        for step in images:
            found = None if found is None else step(found)
        return found

    return image


def _byte_symbol(character: str) -> str | None:
    """A byte as `ByteLevel` writes it; characters of several bytes have several."""
    return _BYTE_SYMBOLS.get(character, character) if character.isascii() else None


def _without_prefix(description: dict[str, Any]) -> dict[str, Any]:
    """The tokenizer without what it puts before a text."""

    def rest_of(part: Any, inside: str) -> Any:
        if part is None:
            return None
        if inside in part:
            return {**part, inside: [rest_of(inner, inside) for inner in part[inside] if inner["type"] != "Prepend"]}
        if part["type"] == "Metaspace":
            return {**part, "prepend_scheme": "never"}
        return {**part, "add_prefix_space": False} if part["type"] == "ByteLevel" and "use_regex" in part else part

    normalizer = rest_of(description.get("normalizer"), "normalizers")
    if normalizer is not None and normalizer["type"] == "Prepend":
        normalizer = None
    pre_tokenizer = rest_of(description.get("pre_tokenizer"), "pretokenizers")
    return {**description, "normalizer": normalizer, "pre_tokenizer": pre_tokenizer}
