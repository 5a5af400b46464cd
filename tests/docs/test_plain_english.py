"""Docs, recipes' comments, docstrings, comments and messages have none of the phrases of a list.

The list holds translations word by word that have been in this project and that a reader of English stumbles over. It
is short on purpose: a phrase joins it only if it is nearly never right.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.processes import ROOT

# (phrase, what to write instead)
PHRASES = [
    (r"\bstands? (?:in|on|at|beside|between|there|for itself)\b(?! in\b)", "is in, appears, there is"),
    (r"\bstands?\b \w+ times\b", "appears"),
    (r"\banew\b", "again"),
    (r"\bmend(?:s|ed|ing)?\b", "fix, repair"),
    (r"\bcan(?:not)? be had\b", "is (not) available, could not be downloaded"),
    (r"\bput(?:s|ting)? up with\b", "tolerate, retry"),
    (r"\bcomes? no further\b", "makes no progress"),
    (r"\bgo(?:es|ing)? on (?:from|after|by|with)\b|\bgone on from\b", "continue, resume"),
    (r"\b(?:for|as) so long\b|\bso long (?:as|until)\b", "for this long, as long as, until"),
    (r"\bfor as long as\b", "while, until"),
    (r"\binside of\b|\boutside of\b", "inside, outside"),
    (r"\bin place of\b", "instead of"),
    (r"(?:, | \()as (?:it is|they are|it was|they were)(?=[,.;:)]|$)", "unchanged"),
    (r"\b(?:kept|used|stays?|left|shown|copied|written|taken) as (?:it is|they are|it was|they were)\b", "unchanged"),
    (r"\basks? for nothing\b", "needs nothing"),
    (r"\bwhatever one of\b", "even if one"),
    (r", too(?=[,.;:)]|$)", "also, even"),
    (r"\b(?:is|are|was|were) there already\b", "already exists"),
    (r"\bwhat else\b", "other files, anything else"),
    (r"\blies? (?:in|on|there|beside|at)\b", "is"),
    (r"\b(?:that|which|it) is no (?!longer\b|more\b|\w+er\b)\w+", "is not a"),
    (
        r"\b(?:a|its|their|the) \w+ of (?:its|their|your) own\b|\b(?:folders?|processe?s?|threads?) of \w+ own\b",
        "its own",
    ),
    (r"\bwith(?:out)? files of your own\b", "your own files"),
    (r"\bis parted\b|\bparted into\b", "is split"),
    (r"\bwithout a word\b", "silently"),
    (r"\bnot there yet\b", "does not exist yet"),
    (r"\bin vain\b", "without success"),
]
# Files in which a phrase is right, and why.
ALLOWED = {
    "tests/docs/test_plain_english.py": "this list and its controls",
}
PATTERNS = [(re.compile(phrase), better) for phrase, better in PHRASES]


def problems_in(text: str) -> list[str]:
    """The phrases of the list in a text, each with what to write instead."""
    plain = " ".join(text.lower().split())
    return [f"`{match.group()}`: write {better}" for pattern, better in PATTERNS for match in pattern.finditer(plain)]


def prose_of(path: Path) -> Iterator[tuple[int, str]]:
    """(line, text) of everything in a file that is written for people: all of a page, comments, and Python's texts."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        start = 1
        for paragraph in re.split(r"(?<=\n)\n", text):  # a phrase may be broken at the end of a line
            yield start, paragraph
            start += paragraph.count("\n") + 1
        return
    yield from comments_of(text)
    if path.suffix == ".py":
        yield from texts_of_python(text)


def comments_of(code: str) -> Iterator[tuple[int, str]]:
    """(line, text) of comments; those on neighbouring lines are joined. A `#` in a text counts as one too."""
    start, joined = 1, ""
    for number, line in enumerate(code.splitlines(), 1):
        comment = re.search(r"(?:^|\s)#(.*)", line) if "#" in line else None
        if comment:
            start, joined = (start, f"{joined} {comment[1]}") if joined else (number, comment[1])
        elif joined:
            yield start, joined
            joined = ""
    yield start, joined


def texts_of_python(code: str) -> Iterator[tuple[int, str]]:
    """(line, text) of texts in Python, docstrings and f-strings included; values in f-strings are left out."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            yield node.lineno, node.value
        elif isinstance(node, ast.JoinedStr):
            yield (
                node.lineno,
                "".join(str(part.value) if isinstance(part, ast.Constant) else "x" for part in node.values),
            )


def problems_of(folder: Path, code: str) -> list[str]:
    """The phrases of the list in a Python file."""
    path = folder / "code.py"
    path.write_text(code, encoding="utf-8")
    return [problem for _, text in prose_of(path) for problem in problems_in(text)]


def files() -> list[Path]:
    """Pages, recipes, scripts and Python files of the project."""
    found = [ROOT / name for name in ("README.md", "CHANGELOG.md", "launch.sh", "pyproject.toml", "mkdocs.yml")]
    for folder, patterns in {
        "docs": ["*.md", "*.py"],
        "recipes": ["*.yaml", "*.py"],
        **{name: ["*.py"] for name in ("data_pipeline", "ochat_train", "benchmarks", "tests")},
    }.items():
        found += [path for pattern in patterns for path in sorted((ROOT / folder).rglob(pattern))]
    return [path for path in found if str(path.relative_to(ROOT)) not in ALLOWED]


def test_no_phrase_of_the_list_is_written_for_people() -> None:
    paths = files()
    assert len(paths) > 300, "most of the project is read"
    found: dict[str, None] = {}  # a part of an f-string is read twice
    for path in paths:
        prose = list(prose_of(path))
        if problems_in(". ".join(text for _, text in prose)):  # one search of a whole file, because it is fast
            places = ((line, problem) for line, text in prose for problem in problems_in(text))
            found |= {f"{path.relative_to(ROOT)}:{line}: {problem}": None for line, problem in places}
    assert not found, "\n".join(["plain English, please:", *found])


@pytest.mark.parametrize(
    "text",
    [
        "Not measured yet stands in the table.",
        "The step is gone on from.",
        "The text stands 3 times in it.",
        "All checks run, whatever one of them meets.",
        "failures that pass by themselves are put up with",
        "end the run if a rank comes no further for so long",
        "brought inside\nof `reward_clip`",
        "What else lies in the repository stays.",
        "the row is kept as it is",
        "NaN is refused, too.",
        "a file that is no run",
        "each has a folder of its own",
    ],
)
def test_the_control_is_found(text: str) -> None:
    assert problems_in(text)


def test_what_is_right_is_not_found() -> None:
    right = (
        "It is no longer there. Mean and standard deviation over seeds. A stand-in of the Hub; the stand-in has no "
        "Xet. Goes on one core. Too long, and too slow. As it is exported, so it is loaded. A run in its own folder. "
        "That is no faster. The recommended amendment."
    )
    assert problems_in(right) == []


@pytest.mark.parametrize(
    "code",
    [
        "x = 1  # made anew\n",
        '"""Made anew."""\n',
        "raise ValueError(f'{x} is made anew')\n",
        "x = (\n    'it is made '\n    'as they are; kept '\n    'as it is'\n)\n",
        "# it is kept\n# as it is\n",
    ],
)
def test_every_kind_of_text_in_python_is_read(code: str, tmp_path: Path) -> None:
    assert problems_of(tmp_path, code)


def test_names_in_code_are_not_prose(tmp_path: Path) -> None:
    assert not problems_of(tmp_path, "anew = mend(stands_in)\n")
