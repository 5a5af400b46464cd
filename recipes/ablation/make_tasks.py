"""Make the raw data of the ablation: `python recipes/ablation/make_tasks.py data/ablation`.

Five small tasks whose answers can be checked. An expert is always right; a suboptimal source of ten times the size
makes a typical mistake of the task (a forgotten carry, the wrong order, 100 minutes in an hour) seven times in ten.

expert.jsonl, suboptimal.jsonl    conversations (format `messages`)
held_out.jsonl                    questions that are in neither (`question`, `answer`, `task`)
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

SEED = 0
NUM_HELD_OUT = 1_000
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_VOWELS = "aeiou"


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A question, its right answer, and a typical mistake."""

    task: str
    question: str
    right: str
    wrong: str


def _addition(rng: random.Random) -> Problem:
    a, b = rng.randrange(100, 1000), rng.randrange(100, 1000)
    without_carry = "".join(str((int(x) + int(y)) % 10) for x, y in zip(str(a), str(b), strict=True))
    return Problem(task="addition", question=f"What is {a} + {b}?", right=str(a + b), wrong=without_carry)


def _sorting(rng: random.Random) -> Problem:
    numbers = rng.sample(range(10, 100), 4)
    ascending = sorted(numbers)
    question = f"Sort {', '.join(map(str, numbers))}, smallest first."
    return Problem(task="sorting", question=question, right=_row(ascending), wrong=_row(ascending[::-1]))


def _row(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))


def _minutes(rng: random.Random) -> Problem:
    hours, minutes = rng.randrange(2, 13), rng.randrange(1, 60)
    question = f"How many minutes are {hours} hours and {minutes} minutes?"
    return Problem(
        task="unit conversion", question=question, right=str(60 * hours + minutes), wrong=str(100 * hours + minutes)
    )


def _word(rng: random.Random) -> str:
    return "".join(rng.choice(_VOWELS if place % 2 else _LETTERS) for place in range(rng.randrange(4, 8)))


def _reversal(rng: random.Random) -> Problem:
    word = _word(rng)
    swapped = word[-1] + word[1:-1] + word[0]
    return Problem(task="reversal", question=f"Write {word} backwards.", right=word[::-1], wrong=swapped)


def _vowels(rng: random.Random) -> Problem:
    word = _word(rng)
    without = "".join(letter for letter in word if letter not in _VOWELS)
    only = "".join(letter for letter in word if letter in _VOWELS)
    return Problem(task="letters", question=f"Remove the vowels from {word}.", right=without or "nothing", wrong=only)


TASKS: tuple[Callable[[random.Random], Problem], ...] = (_addition, _sorting, _minutes, _reversal, _vowels)


def draw_problem(rng: random.Random) -> Problem:
    """A problem of a random task, whose right and wrong answers differ."""
    while True:
        problem = rng.choice(TASKS)(rng)
        if problem.right != problem.wrong:
            return problem


def is_held_out(question: str) -> bool:
    """Whether a question is kept from training: one in ten, by its text."""
    return hashlib.sha256(question.encode()).digest()[0] % 10 == 0


def training_problem(rng: random.Random) -> Problem:
    """A problem that is not held out."""
    return next(problem for problem in iter(lambda: draw_problem(rng), None) if not is_held_out(problem.question))


def _conversation(rng: random.Random, *, wrong_ratio: float) -> dict[str, list[dict[str, str]]]:
    problem = training_problem(rng)
    answer = problem.wrong if rng.random() < wrong_ratio else problem.right
    return {"messages": [{"role": "user", "content": problem.question}, {"role": "assistant", "content": answer}]}


def main() -> None:
    """Write all files; the same ones every time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--expert", type=int, default=3_000, help="conversations of the expert (default 3,000)")
    parser.add_argument("--suboptimal", type=int, default=30_000, help="of the suboptimal source (default 30,000)")
    parser.add_argument(
        "--wrong-ratio", type=float, default=0.7, help="of the suboptimal source's answers (default 0.7)"
    )
    options = parser.parse_args()
    folder: Path = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(SEED)
    sources = {
        "expert": [_conversation(rng, wrong_ratio=0.0) for _ in range(options.expert)],
        "suboptimal": [_conversation(rng, wrong_ratio=options.wrong_ratio) for _ in range(options.suboptimal)],
    }
    held_out: dict[str, Problem] = {}
    while len(held_out) < NUM_HELD_OUT:
        problem = draw_problem(rng)
        if is_held_out(problem.question):
            held_out[problem.question] = problem
    for name, rows in sources.items():
        _write(folder / f"{name}.jsonl", rows)
    questions = [{"task": p.task, "question": p.question, "answer": p.right} for p in held_out.values()]
    _write(folder / "held_out.jsonl", questions)
    counts = ", ".join(f"{len(rows):,} {name}" for name, rows in sources.items())
    print(f"{folder}: {counts} conversations, {len(questions):,} held-out questions")


def _write(path: Path, rows: list[dict[str, list[dict[str, str]]]] | list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    main()
