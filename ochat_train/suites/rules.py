"""How an answer is found in what a model wrote: one function a rule, and one table.

A rule gives back what it found and whether that is an answer. The first six are those behind the openchat_3.5 card's
numbers, from their description; docs/evaluation.md says what each of them overlooks. Ours are beside them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ochat_train.suites.stated import stated_letter, stated_text

_AGIEVAL_LETTERS = "ABCDEF"
_MMLU_LETTERS = "ABCD"
_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_MMLU_WITHOUT_ANSWER = "(C)"


@dataclass(frozen=True, kw_only=True)
class Found:
    """text: what is compared, None for nothing. is_answer: whether the rule counts it as an answer."""

    text: str | None
    is_answer: bool


NOTHING = Found(text=None, is_answer=False)
Rule = Callable[[str, Sequence[str]], Found]  # an answer and the letters of the options


def first_letter(answer: str, letters: Sequence[str]) -> Found:
    """The first character that is one of the letters, wherever it is: of `Answer: B` the A."""
    letter = next((character for character in answer if character in letters), None)
    return NOTHING if letter is None else Found(text=letter, is_answer=True)


def agieval(answer: str, letters: Sequence[str]) -> Found:
    """`first_letter` of A to F, whatever the options are."""
    return first_letter(answer, _AGIEVAL_LETTERS)


def bbh_choice(answer: str, letters: Sequence[str]) -> Found:
    """After the last `answer is `: the option of the alphabet's first letter in brackets, `(B) or (A)` is A.

    Without that phrase the whole answer is compared, and does not count as answered.
    """
    rest = _after_last(answer, "answer is ")
    if rest is None:
        return Found(text=answer, is_answer=False)
    option = _first_of_alphabet(rest, _ALPHABET)
    return Found(text=rest if option is None else option, is_answer=option is not None)


def bbh_free(answer: str, letters: Sequence[str]) -> Found:
    """What follows the last `answer is `, without one full stop at its end; otherwise as `bbh_choice`."""
    rest = _after_last(answer, "answer is ")
    if rest is None:
        return Found(text=answer, is_answer=False)
    return Found(text=rest.removesuffix("."), is_answer=bool(rest))


def mmlu(answer: str, letters: Sequence[str]) -> Found:
    """As `bbh_choice` after the last `answer is`, for A to D; no answer counts as (C)."""
    rest = _after_last(answer, "answer is")
    option = None if rest is None else _first_of_alphabet(rest, _MMLU_LETTERS)
    return Found(text=_MMLU_WITHOUT_ANSWER if option is None else option, is_answer=option is not None)


def last_digits(answer: str, letters: Sequence[str]) -> Found:
    """The last number as it is written, without sign and thousands: of `-1,234.50` the text 234.50."""
    numbers = re.findall(r"\d*\.?\d+", answer)
    return Found(text=numbers[-1], is_answer=True) if numbers else Found(text=answer, is_answer=False)


def stated_choice(answer: str, letters: Sequence[str]) -> Found:
    """Our own rule: a letter of the options that the answer states, see `stated`."""
    letter = stated_letter(answer, letters)
    return NOTHING if letter is None else Found(text=letter, is_answer=True)


def stated_words(answer: str, letters: Sequence[str]) -> Found:
    """Our own rule for questions without options: the text that the answer states, see `stated`."""
    text = stated_text(answer)
    return NOTHING if text is None else Found(text=text, is_answer=True)


def _after_last(answer: str, phrase: str) -> str | None:
    """What follows the last `phrase`, without spaces around it; None where it is not there."""
    _, found, rest = answer.rpartition(phrase)
    return rest.strip() if found else None


def _first_of_alphabet(text: str, letters: str) -> str | None:
    return next((f"({letter})" for letter in letters if f"({letter})" in text), None)


@dataclass(frozen=True, kw_only=True)
class RuleText:
    """A rule and what it is, for people."""

    find: Rule
    text: str


RULES: Mapping[str, RuleText] = {
    "first letter A-F": RuleText(find=agieval, text="the first character of the answer that is one of A to F"),
    "first option letter": RuleText(find=first_letter, text="the first character that is the letter of an option"),
    "BBH choice": RuleText(
        find=bbh_choice,
        text="after the last `answer is `, the first of (A), (B), ... in it; without the phrase the whole answer",
    ),
    "BBH text": RuleText(
        find=bbh_free,
        text="what follows the last `answer is `, without a full stop; without the phrase the whole answer",
    ),
    "MMLU": RuleText(
        find=mmlu,
        text="after the last `answer is`, the first of (A), (B), (C), (D) that is there; no answer counts as (C)",
    ),
    "last digits": RuleText(find=last_digits, text="the last digits, compared as text, thousands cut apart"),
    "stated": RuleText(
        find=stated_choice,
        text="a letter that the answer states, begins with or has as the only one in brackets; `A:` is a label there",
    ),
    "stated text": RuleText(
        find=stated_words,
        text="the rest of the line after the last `answer is`, without case, marks and full stop; otherwise no answer",
    ),
}
