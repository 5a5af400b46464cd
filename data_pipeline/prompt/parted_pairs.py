"""What a pre-tokenizer's pattern does between two neighbouring characters.

A pattern is read as a set of items, each of which matches one character, and of which item may follow which (Glushkov's
construction). So for two characters it can be said with certainty that no match holds both: then the matches left of
the place between them, and those right of it, are the same whether the text is cut there or not.

Whatever a pattern says that this file does not know raises `UnknownPatternError`: nothing is claimed about it.
"""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

Matches = Callable[[str], bool]

_CATEGORIES = [
    "L",
    "Lu",
    "Ll",
    "Lt",
    "Lm",
    "Lo",
    "M",
    "Mn",
    "Mc",
    "Me",
    "N",
    "Nd",
    "Nl",
    "No",
    "P",
    "Pc",
    "Pd",
    "Ps",
    "Pe",
    "Pi",
    "Pf",
    "Po",
    "S",
    "Sm",
    "Sc",
    "Sk",
    "So",
    "Z",
    "Zs",
    "Zl",
    "Zp",
]
_QUANTIFIERS = "?*+{"


class UnknownPatternError(ValueError):
    """A pattern that cannot be judged."""


class Between(Enum):
    """What is certain about the place between two characters.

    PARTS: a piece ends there. KEEPS: no match holds both characters, but a stretch without matches may. UNKNOWN: a
    match may hold both.
    """

    PARTS = "parts"
    KEEPS = "keeps"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class _Part:
    """A part of a pattern. first, last: items that a match of it can begin and end with. nullable: may be empty.

    is_plain: a single item of `first` and `last` is a match of it, on its own, whatever follows in the text.
    """

    first: frozenset[int] = frozenset()
    last: frozenset[int] = frozenset()
    nullable: bool = True
    is_plain: bool = True


class ParsedPattern:
    """A pattern of Oniguruma's, as far as tokenizers use them."""

    def __init__(self, pattern: str) -> None:
        self._text, self._at = pattern, 0
        self._items: list[Matches | None] = []  # None: looks at the character ahead, without taking it
        self._follow: defaultdict[int, set[int]] = defaultdict(set)
        self._ignores_case = False
        self._alternatives = self._read_alternatives()
        if self._at < len(pattern):
            raise UnknownPatternError(f"`{pattern[self._at]}` at {self._at}")
        if any(part.nullable for part in self._alternatives):
            raise UnknownPatternError("it may match nothing")

    def between(self, left: str, right: str) -> Between:
        """What is certain about a place between these two characters."""
        for number in self._matching(left):
            followers = [self._items[follower] for follower in self._follow[number]]
            if any(matches is None or matches(right) for matches in followers):
                return Between.UNKNOWN
        begins = set(self._matching(right))
        alone = any(part.is_plain and begins & part.first & part.last for part in self._alternatives)
        return Between.PARTS if alone else Between.KEEPS

    def _matching(self, character: str) -> list[int]:
        return [number for number, matches in enumerate(self._items) if matches is not None and matches(character)]

    # ---- reading ----

    def _read_alternatives(self) -> list[_Part]:
        parts = [self._read_sequence()]
        while self._take("|"):
            parts.append(self._read_sequence())
        return parts

    def _read_sequence(self) -> _Part:
        whole = _Part()
        while self._at < len(self._text) and self._text[self._at] not in "|)":
            whole = self._then(whole, self._read_quantified())
        return whole

    def _then(self, one: _Part, two: _Part) -> _Part:
        for number in one.last:
            self._follow[number] |= two.first
        return _Part(
            first=one.first | (two.first if one.nullable else frozenset()),
            last=two.last | (one.last if two.nullable else frozenset()),
            nullable=one.nullable and two.nullable,
            is_plain=one.is_plain and two.is_plain,
        )

    def _read_quantified(self) -> _Part:
        part = self._read_atom()
        while self._at < len(self._text) and self._text[self._at] in _QUANTIFIERS:
            least, most = self._read_counts()
            if most != 1:
                for number in part.last:
                    self._follow[number] |= part.first
            is_plain = part.is_plain and least <= 1
            if self._take("+"):  # possessive, or repeated
                is_plain = False
                for number in part.last:
                    self._follow[number] |= part.first
            elif self._take("?"):
                is_plain = False
            part = _Part(first=part.first, last=part.last, nullable=part.nullable or not least, is_plain=is_plain)
        return part

    def _read_counts(self) -> tuple[int, int | None]:
        """Least and most repetitions; no most: None."""
        for sign, counts in {"?": (0, 1), "*": (0, None), "+": (1, None)}.items():
            if self._take(sign):
                return counts
        end = self._text.find("}", self._at)
        low, comma, high = self._text[self._at + 1 : end].partition(",")
        if end < 0 or not low.isdigit() or not (high.isdigit() or high == ""):
            raise UnknownPatternError("`{`")
        self._at = end + 1
        return int(low), (int(high) if high else None) if comma else int(low)

    def _read_atom(self) -> _Part:
        if self._take("("):
            return self._read_group()
        if self._take("["):
            return self._item(self._read_class())
        if self._text[self._at] in ".^$)*+?{}]":
            raise UnknownPatternError(f"`{self._text[self._at]}`")
        return self._item(self._read_character())

    def _read_group(self) -> _Part:
        if self._take("?=") or self._take("?!"):
            return self._read_look()
        before = self._ignores_case
        if self._take("?i:"):
            self._ignores_case = True
        elif not self._take("?:") and self._text.startswith("?", self._at):
            raise UnknownPatternError("a group of an unknown kind")
        parts = self._read_alternatives()
        self._ignores_case = before
        self._close()
        return _Part(
            first=frozenset().union(*(part.first for part in parts)),
            last=frozenset().union(*(part.last for part in parts)),
            nullable=any(part.nullable for part in parts),
            is_plain=all(part.is_plain for part in parts),
        )

    def _read_look(self) -> _Part:
        """`(?=` or `(?!`: one character ahead, whatever it is."""
        begun = len(self._items)
        parts = self._read_alternatives()
        self._close()
        inner = range(begun, len(self._items))
        is_one = all(part.is_plain and not part.nullable for part in parts)
        if not is_one or any(self._items[number] is None or self._follow[number] for number in inner):
            raise UnknownPatternError("it looks further ahead than one character")
        del self._items[begun:]  # they take no character
        self._items.append(None)
        look = frozenset({len(self._items) - 1})
        return _Part(first=look, last=look, nullable=True, is_plain=False)

    def _read_class(self) -> Matches:
        is_negated = self._take("^")
        members: list[Matches] = []
        while not self._take("]"):
            if self._at >= len(self._text) or self._text[self._at] == "[" or self._text.startswith("&&", self._at):
                raise UnknownPatternError("a class of an unknown kind")
            begin = self._at
            member, single = self._read_character(), self._text[begin]
            if self._text.startswith("-", self._at) and not self._text.startswith("-]", self._at):
                self._at += 1
                if single == "\\" or self._text[self._at : self._at + 1] in ("\\", "[", ""):
                    raise UnknownPatternError("a range of escapes")
                members.append(self._in_case(_in_range(single, self._text[self._at])))
                self._at += 1
            else:
                members.append(member)
        return lambda character: any(matches(character) for matches in members) != is_negated

    def _read_character(self) -> Matches:
        sign = self._text[self._at]
        self._at += 1
        if sign != "\\":
            return self._in_case(_is(sign))
        sign = self._text[self._at : self._at + 1]
        self._at += 1
        if sign in ("p", "P"):
            end = self._text.find("}", self._at)
            name = self._text[self._at + 1 : end]
            if self._text[self._at : self._at + 1] != "{" or name not in _CATEGORIES:
                raise UnknownPatternError(f"property {name[:20]}")
            self._at = end + 1
            return _in_category(name, is_negated=sign == "P")
        if sign in _ESCAPES:
            return _ESCAPES[sign]
        if not sign or sign.isalnum() or not sign.isascii():
            raise UnknownPatternError(f"`\\{sign}`")
        return _is(sign)

    def _in_case(self, matches: Matches) -> Matches:
        if not self._ignores_case:
            return matches
        return lambda character: any(map(matches, {character, character.lower(), character.upper()}))

    def _item(self, matches: Matches) -> _Part:
        self._items.append(matches)
        number = frozenset({len(self._items) - 1})
        return _Part(first=number, last=number, nullable=False)

    def _take(self, text: str) -> bool:
        is_there = self._text.startswith(text, self._at)
        self._at += len(text) * is_there
        return is_there

    def _close(self) -> None:
        if not self._take(")"):
            raise UnknownPatternError("a group without an end")


def _is(sign: str) -> Matches:
    return lambda character: character == sign


def _in_range(low: str, high: str) -> Matches:
    return lambda character: low <= character <= high


def _in_category(name: str, *, is_negated: bool) -> Matches:
    return lambda character: unicodedata.category(character).startswith(name) != is_negated


def _is_word(character: str) -> bool:
    return unicodedata.category(character)[0] in "LM" or unicodedata.category(character) in ("Nd", "Pc")


_ESCAPES: dict[str, Matches] = {
    "s": str.isspace,
    "S": lambda character: not character.isspace(),
    "d": _in_category("Nd", is_negated=False),
    "D": _in_category("Nd", is_negated=True),
    "w": _is_word,
    "W": lambda character: not _is_word(character),
    "r": _is("\r"),
    "n": _is("\n"),
    "t": _is("\t"),
}
