"""Texts as the hashes of their words, in numpy: fast enough to compare a whole training set with a benchmark.

A word is a run of letters, digits and their marks, in compatibility form (NFKC) and without case; everything else only
separates words. Scripts that write no spaces (Chinese, Japanese) have one word a character.

The hash of a word is a sum over its characters, sum_i t[c_i] * B^i mod 2^64 with random t, and is then mixed; the hash
of n words is the same sum over their hashes. Two different runs of words have the same hash with a probability of about
2^-63, so among 10^8 runs of training text and 10^6 of a benchmark one false match is expected in 10^5 comparisons.
"""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_BASE = np.uint64(0x9E3779B97F4A7C17)  # odd, and one less is twice an odd number: no power of two survives in 1 - B
_SEPARATOR = "\0"  # a separate word between texts: no run of words with it is ever looked for
_NUM_CHARACTERS = 0x110000
_NO_SPACES = ((0x3040, 0x3100), (0x3400, 0x4DC0), (0x4E00, 0xA000), (0xF900, 0xFB00), (0x20000, 0x32000))
_BETWEEN, _INSIDE, _ALONE = range(3)


@dataclass(frozen=True, kw_only=True)
class Words:
    """The words of several texts. hashes: uint64[words]; before, between and after the texts is a separator.

    text: int64[words], the number of the text that a word is in; a separator counts to the text behind it.
    is_separator: bool[words].
    """

    hashes: np.ndarray
    text: np.ndarray
    is_separator: np.ndarray

    def counts(self, num_texts: int) -> np.ndarray:
        """int64[num_texts + 1]: words of each text, and none behind the last separator."""
        return np.bincount(self.text[~self.is_separator], minlength=num_texts + 1)


def words_of(texts: Sequence[str]) -> Words:
    """The words of texts."""
    joined = _SEPARATOR.join(["", *(text.replace(_SEPARATOR, " ") for text in texts), ""])
    whole = unicodedata.normalize("NFKC", joined).casefold()
    characters_C = np.frombuffer(whole.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    kinds_C = _kinds()[characters_C]
    is_start_C = kinds_C != _BETWEEN
    is_start_C[1:] &= (kinds_C[1:] == _ALONE) | (kinds_C[:-1] != _INSIDE)
    in_word = np.flatnonzero(kinds_C != _BETWEEN)
    starts = np.flatnonzero(is_start_C[in_word])  # among the characters that are in words
    places = np.arange(len(in_word)) - np.repeat(starts, np.diff([*starts, len(in_word)]))
    terms = _values()[characters_C[in_word]] * _powers(int(places.max(initial=0)) + 1)[places]
    hashes = _mixed(np.add.reduceat(terms, starts)) if len(starts) else np.zeros(0, np.uint64)
    is_separator = characters_C[in_word[starts]] == 0
    return Words(hashes=hashes, text=np.cumsum(is_separator) - 1, is_separator=is_separator)


def runs_of(words: Words, *, num_words: int) -> np.ndarray:
    """uint64[n]: the hash of `num_words` words from each place on; n = words - num_words + 1, at least 0."""
    count = max(0, len(words.hashes) - num_words + 1)
    found = np.zeros(count, np.uint64)
    for offset in range(num_words):
        found = found * _BASE + words.hashes[offset : offset + count]
    return _mixed(found)


def _mixed(values: np.ndarray) -> np.ndarray:
    """The finisher of splitmix64 (Steele, Lea and Flood, 2014): no sum of hashes is a hash of a sum."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(values ^ (values >> np.uint64(31)))


@functools.cache
def _kinds() -> np.ndarray:
    """uint8[characters]: whether a character is between words, inside one, or a word alone."""
    kinds = np.zeros(_NUM_CHARACTERS, np.uint8)
    inside = [code for code in range(_NUM_CHARACTERS) if unicodedata.category(chr(code))[0] in "LNM"]
    kinds[inside] = _INSIDE
    for start, stop in _NO_SPACES:
        kinds[start:stop] = np.where(kinds[start:stop] == _INSIDE, _ALONE, kinds[start:stop])
    kinds[0] = _ALONE
    return kinds


@functools.cache
def _values() -> np.ndarray:
    """uint64[characters]: t of the module's formula, the same in every process."""
    return np.random.default_rng(13).integers(0, 2**64, _NUM_CHARACTERS, dtype=np.uint64)


def _powers(count: int) -> np.ndarray:
    """uint64[count]: B^0, B^1, ... mod 2^64."""
    return np.cumprod(np.concatenate(([np.uint64(1)], np.full(count - 1, _BASE, np.uint64))), dtype=np.uint64)
