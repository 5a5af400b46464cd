"""Small tasks with checkable answers, and two kinds of teachers: an expert who is right, and one who is often wrong.

A wrong answer is not noise but one plausible mistake per task (the neighbour's letter, the word itself), as in
real data of lower quality; so the two classes teach two behaviours, and only the condition tells them apart.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

_WORDS = """
    apple bread cloud dance eagle flame grape house ivory juice knife lemon mango night ocean piano queen river stone
    table uncle voice whale xenon yacht zebra amber beach candle desert engine forest garden harbor island jacket
    kettle ladder marble nickel orange pepper quartz rocket saddle temple velvet window yellow zipper anchor basket
    copper dragon empire falcon ginger hammer insect jungle kitten lizard magnet needle oyster pillow rabbit silver
    tunnel violin walnut
""".split()  # noqa: SIM905
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


_NAMES = """
    Ada Ben Cleo Dan Eva Finn Gina Hugo Ines Jack Kira Liam Mona Nico Olga Paul Rosa Sam Tina Uwe Vera Will Yara Zoe
""".split()  # noqa: SIM905
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_OPPOSITES = (
    ("hot", "cold"),
    ("big", "small"),
    ("fast", "slow"),
    ("old", "new"),
    ("dark", "light"),
    ("high", "low"),
    ("wet", "dry"),
    ("full", "empty"),
    ("hard", "soft"),
    ("long", "short"),
    ("rich", "poor"),
    ("loud", "quiet"),
)


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A question, its right answer, and the mistake that a careless teacher makes."""

    task: str
    question: str
    right: str
    wrong: str


def _first_letters(rng: random.Random) -> Problem:
    first, second = rng.sample(_WORDS, 2)
    question = f"First letters of {first} and {second}?"
    return Problem(
        task="first letters", question=question, right=f"{first[0]} {second[0]}", wrong=f"{second[0]} {first[0]}"
    )


def _opposite(rng: random.Random) -> Problem:
    pair = rng.choice(_OPPOSITES)
    word, right = pair if rng.random() < 0.5 else pair[::-1]
    return Problem(task="opposite", question=f"{rng.choice(_NAMES)} asks: opposite of {word}?", right=right, wrong=word)


def _even(rng: random.Random) -> Problem:
    number = rng.randrange(100, 1000)
    right, wrong = ("even", "odd") if number % 2 == 0 else ("odd", "even")
    return Problem(task="even or odd", question=f"Is {number} even or odd?", right=right, wrong=wrong)


def _next_letter(rng: random.Random) -> Problem:
    index = rng.randrange(1, 25)
    question = f"{rng.choice(_NAMES)} asks: which letter follows {_LETTERS[index]}?"
    return Problem(task="next letter", question=question, right=_LETTERS[index + 1], wrong=_LETTERS[index - 1])


def _next_day(rng: random.Random) -> Problem:
    index = rng.randrange(7)
    question = f"{rng.choice(_NAMES)} asks: which day follows {_DAYS[index]}?"
    return Problem(task="next day", question=question, right=_DAYS[(index + 1) % 7], wrong=_DAYS[index - 1])


TASKS: Mapping[str, Callable[[random.Random], Problem]] = {
    "first letters": _first_letters,
    "even or odd": _even,
    "next letter": _next_letter,
    "next day": _next_day,
    "opposite": _opposite,
}


def draw_problem(rng: random.Random) -> Problem:
    """A problem of a random task."""
    return TASKS[rng.choice(list(TASKS))](rng)
