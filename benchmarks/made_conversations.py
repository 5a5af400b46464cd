"""Conversations for the benchmarks, made from a seed: as long and as varied as people's, written by nobody.

Words come from a vocabulary of 200,000 with Zipf frequencies (the commonest are English, the rest is built from
syllables), so that a tokenizer meets new words all the time, as it does in real text. Between the sentences are
code, numbers, Chinese and Japanese text and emoji. With the Mistral tokenizer a conversation has about 1,650 tokens on
average.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import numpy as np

_NUM_WORDS = 200_000
_ZIPF_OFFSET = 2.7
_ZIPF_EXPONENT = 1.2
_MEAN_TURNS = 3.6
_MEDIAN_ASSISTANT_WORDS = 120
_MEDIAN_USER_WORDS = 25
_SIGMA = 0.9  # of the logarithm of a message's length
_DRAWN_AT_ONCE = 1 << 16

_COMMON = (
    "the of and to a in is that for it you with as on be are this can or from have by not your an at will which we if "
    "but they has was more use one their all how when also these there may other time what some out so like any into "
    "using such then its data people make them than would each two number most different first list between example "
    "need used should way value function where many work only help information could here new about know system code "
    "over user given following result provide set get help while text important process case create file line based "
    "see however show method return name after well because find points problem model through change name return type "
    "available answer same world question write state does between part possible even three high learn several without "
    "start order page public form group include level read including long support add test business program want water "
    "through both best during day under local area school small local right being last development power life "
    "government years money"
)
_ONSETS = "b c ch d f g h l m n p r s s t t w br cl comp con de dis ex in in pr pre pro qu re re sh st str th tr un"
_VOWELS = "a a a a a e e e e e e i i i i o o o o u u ai ea io ou"
_CODAS = "n n r r s t l m d nd nt ng st"
_ENDINGS = ["", "", "", "s", "s", "ed", "ing", "er", "ly", "tion", "ment", "able", "al", "ity", "ness", "ive"]
_EMOJI = "😀😂🤔👍🎉🔥💡🚀❤️✅🌍📊🧠🙏✨"
_CODE_LINES = (
    "def {0}_{1}(self, {2}: int = {n}) -> str:",
    "    {0} = [{1}.{2}(i) for i in range({n}) if i % {m} == 0]  # {3}",
    '    return {0}.get("{1}", {{}}).items()',
    "for (int {0} = 0; {0} < {n}; ++{0}) {{ {1}[{0}] += {2} * {m}; }}",
    "    if ({0} != nullptr && {1}->{2}() >= 0x{n:04x}) {{",
    "SELECT {0}, COUNT(*) FROM {1} WHERE {2} > {n}.{m} GROUP BY {3};",
    "import {{ {0}, {1} }} from './{2}/{3}';",
    "<div class=\"{0}-{1}\" id='{2}'>{3}</div>",
    "$ {0} --{1}={n} -{m} ./{2}/{3}.json | grep '{1}'",
)


class Words:
    """An endless supply of words with Zipf frequencies."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._words = np.array(_vocabulary(Random(0)), dtype=object)
        weights = (np.arange(len(self._words)) + _ZIPF_OFFSET) ** -_ZIPF_EXPONENT
        self._cumulative = np.cumsum(weights) / weights.sum()
        self._drawn: list[str] = []

    def take(self, count: int) -> list[str]:
        """The next `count` words."""
        while len(self._drawn) < count:
            ranks = np.searchsorted(self._cumulative, self._rng.random(_DRAWN_AT_ONCE))
            self._drawn += self._words[np.minimum(ranks, len(self._words) - 1)].tolist()
        taken, self._drawn[-count:] = self._drawn[-count:], []
        return taken


def _vocabulary(random: Random) -> list[str]:
    """Words by falling frequency, the commoner the shorter; all different."""
    codas = [""] * 5 + _CODAS.split()
    syllables = [onset + vowel + coda for onset in _ONSETS.split() for vowel in _VOWELS.split() for coda in codas]
    common = _COMMON.split()
    choose, words = random.choice, dict.fromkeys(common)
    while len(words) < _NUM_WORDS:
        longest = 1 if len(words) < 2_000 else 2 if len(words) < 20_000 else 3
        parts = (
            [choose(common)]
            if random.random() < 0.3
            else [choose(syllables) for _ in range(random.randint(1, longest))]
        )
        word = "".join(parts) + choose(_ENDINGS)
        words[word.capitalize() if random.random() < 0.1 else word] = None
    return list(words)


class TextMaker:
    """Writes messages of about a given number of words: mostly prose, with blocks of other kinds between."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._words = Words(self._rng)
        kinds: list[tuple[float, Callable[[int], str]]] = [
            (0.80, self._prose),
            (0.10, self._code),
            (0.02, self._numbers),
            (0.02, self._east_asian),
            (0.06, self._bullets),
        ]
        self._shares = np.cumsum([share for share, _ in kinds])
        self._writers = [write for _, write in kinds]

    def conversation(self, number: int) -> dict[str, object]:
        """One conversation in the ShareGPT layout."""
        turns = []
        for _ in range(self._rng.geometric(1 / _MEAN_TURNS)):
            turns.append({"from": "human", "value": self._message(_MEDIAN_USER_WORDS)})
            turns.append({"from": "gpt", "value": self._message(_MEDIAN_ASSISTANT_WORDS)})
        return {"id": f"made-{number}", "conversations": turns}

    def _message(self, median_words: int) -> str:
        left = max(1, int(self._rng.lognormal(np.log(median_words), _SIGMA)))
        blocks = []
        while left > 0:
            size = min(left, int(self._rng.integers(20, 90)))
            kind = int(np.searchsorted(self._shares, self._rng.random()))
            blocks.append(self._writers[min(kind, len(self._writers) - 1)](size))
            left -= size
        return "\n\n".join(blocks)

    def _prose(self, size: int) -> str:
        words = self._words.take(size)
        start = 0
        for end in np.cumsum(self._rng.integers(5, 22, size=size // 5 + 1)).tolist():
            if start >= size:
                break
            end = min(end, size)
            words[start] = words[start].capitalize()
            if end - start > 9:
                words[start + 6] += ","
            words[end - 1] += "?" if end % 7 == 0 else "."
            start = end
        text = " ".join(words)
        return text if size % 9 else f"{text} {_EMOJI[size % len(_EMOJI)]}"

    def _bullets(self, size: int) -> str:
        words = self._words.take(size)
        lines = [words[i : i + 7] for i in range(0, size, 7)]
        return "\n".join(f"{n}. **{line[0].capitalize()}**: {' '.join(line[1:])}" for n, line in enumerate(lines, 1))

    def _code(self, size: int) -> str:
        lines = []
        for line in self._rng.integers(0, len(_CODE_LINES), size=1 + size // 7).tolist():
            n, m = self._rng.integers(0, 5000, size=2).tolist()
            names = [word.lower() for word in self._words.take(4)]
            lines.append(_CODE_LINES[line].format(*names, n=n, m=m % 10))
        return "```\n" + "\n".join(lines) + "\n```"

    def _numbers(self, size: int) -> str:
        rows = self._rng.integers(0, 10_000_000, size=(1 + size // 8, 3)) // 10 ** self._rng.integers(0, 6, size=3)
        return "\n".join(
            f"| {a} | {b / 100:,.2f} | {c % 100}% | 20{c % 30:02d}-{c % 12 + 1:02d} |" for a, b, c in rows.tolist()
        )

    def _east_asian(self, size: int) -> str:
        """Chinese characters (commoner ones more often), with kana and punctuation between."""
        characters = (0x4E00 + (self._rng.random(size) ** 2 * 6000)).astype(int)
        kana = 0x3042 + self._rng.integers(0, 80, size=size)
        mixed = np.where(self._rng.random(size) < 0.25, kana, characters)
        text = "".join(map(chr, mixed.tolist()))
        return "，".join(text[i : i + 12] for i in range(0, size, 12)) + "。"


def rows(seed: int) -> Iterator[dict[str, object]]:
    """Conversations without end, always the same for a seed."""
    maker, number = TextMaker(seed), 0
    while True:
        yield maker.conversation(number)
        number += 1


def write_conversations(path: Path, *, num_bytes: int, seed: int = 0) -> int:
    """Write a JSONL file of at least `num_bytes` in format `sharegpt`; returns the number of conversations."""
    written = 0
    with path.open("wb") as stream:
        for number, row in enumerate(rows(seed), 1):
            written += stream.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
            if written >= num_bytes:
                return number
    raise AssertionError("rows() has no end")
