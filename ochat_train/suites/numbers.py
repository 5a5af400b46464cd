"""Numbers in answers, and whether two of them are the same."""

from __future__ import annotations

import re
from fractions import Fraction

# A sign that is not a minus between two numbers, digits with or without thousands, decimals; `3/4` is one number.
_NUMBER = re.compile(
    r"(?<![\w.])(?P<sign>[-−])?\s?[$€£]?(?P<digits>\d{1,3}(?:,\d{3})+(?!\d)|\d+)?(?P<decimals>\.\d+)?"
    r"(?:\s?/\s?(?P<over>\d+)(?![\d./]))?"
)
_MARKED = "####"
_MOST_DIGITS = 200  # a model that repeats a digit; longer ones are no numbers


def last_number(text: str) -> Fraction | None:
    """The number after the last `####`, otherwise the last number of the text; None where there is none.

    `$1,234.50`, `1234.5` and `2469/2` are the same number. A percent sign and units are not read.
    """
    _, marked, rest = text.rpartition(_MARKED)
    if marked and (numbers := _numbers(rest)):
        return numbers[0]
    numbers = _numbers(text)
    return numbers[-1] if numbers else None


def _numbers(text: str) -> list[Fraction]:
    found = []
    for match in _NUMBER.finditer(text):
        if not (match["digits"] or match["decimals"]) or len(match.group()) > _MOST_DIGITS:
            continue
        value = Fraction((match["digits"] or "0").replace(",", "") + (match["decimals"] or ""))
        if match["over"] is not None:
            if int(match["over"]) == 0:
                continue
            value /= int(match["over"])
        found.append(-value if match["sign"] and not _is_between(text, match.start()) else value)
    return found


def _is_between(text: str, start: int) -> bool:
    """Whether a minus at `start` follows a number, so that it is not a sign: `5 - 3`."""
    before = text[:start].rstrip()
    return bool(before) and (before[-1].isdigit() or before[-1] in ")]}")
