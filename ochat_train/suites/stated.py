"""What an answer states, an option or a text: our own rules beside those of the card.

They are strict: what is not stated is no answer.

A model may repeat a mark until its longest length. So repetitions never give back what they took (`*+`), which keeps
the work in proportion to the length of an answer.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

_TEXT = re.compile(r"(?i:answer\s*+(?:is\s*+:?|:))[^\S\n]*+(\S[^\n]*)")
_COMMAND = re.compile(r"\\(?:boxed|text|mathrm|mathbf|textbf)\{([^{}]*)\}")
_FILLERS = r"(?:(?:most\s+likely|likely|probably|clearly|definitely|thus|therefore|indeed|option|choice|letter)\s++)*+"
_MARKS = r"(?:[\s*_`\"'$:\uff1a\[]|\\(?:text|mathrm|mathbf|textbf|boxed)\{|\\\(|\\\[)*+"
_ANSWER = (
    r"(?i:\banswer\b(?:[^.\n:]{0,40}?\b(?:is|be)\b|\s*[:>]|(?=[\s*]*?\n)[\s*]*+)|\\boxed\{)"
    r"|\u7b54\u6848(?:\u5e94\u8be5|\u5e94\u5f53)?[\u662f\u4e3a\u9009]*"
)
_CHOICE = (
    r"(?i:\b(?:correct|right|best|final|my)\s+(?:option|choice)\b(?:[^.\n:]{0,40}?\b(?:is|be)\b|\s*:)"
    r"|\bis\s+(?:option|choice)\b|\b(?:option|choice)\s*:|\b(?:choose|select|pick|go\s+with)\b)|\u6545?\u9009\u62e9?"
)
_NOT_BEFORE = r"(?i:\b(?:not|n't|than|instead\s+of|neither|nor|option|choice|statement|except)\b|n't)$"
_LONGEST_DENIAL = 200  # characters, of `instead of`
_NOT_AFTER = r"(?i:(?:is|are|was)\s+(?:also\s+)?(?:not|incorrect|wrong|false)\b|isn't|cannot|can't)"
_IS_RIGHT = r"(?<=\s)(?i:is\s+(?:the\s+|a\s+)?(?:most\s+)?(?:correct|right|best)\b)"
_QUESTION = re.compile(r"(?<=\s)(?:Q|Question)\s*:", re.IGNORECASE)
_LABEL = re.compile(r"(?:\s*(?:A|[Aa]nswer)\s*:(?=\s|$))+")
# `The answer is A dog`: an article, unless a word follows that may come after a letter.
_ARTICLE = r"(?![Aa]\s+(?!because\b|as\b|since\b|for\b|is\b|and\b|or\b|due\b|based\b|with\b)[a-z])"


def stated_letter(answer: str, letters: Sequence[str]) -> str | None:
    """The letter of the options that an answer states; None for no or several letters.

    In this order: the last letter that is called the answer; the last one that is called the right choice, or is
    chosen; the letter that the answer begins with; the only one in brackets or in bold type. A question that the model
    goes on to ask itself is not part of the answer, and `A:` at the start is the label of an answer, as in the prompts
    of these suites. A letter that is denied is not stated.
    """
    if not letters:
        return None
    text = _before_next_question(answer).replace("\uff08", "(").replace("\uff09", ")")
    label = _LABEL.match(text)
    text = text[label.end() :] if label else text
    one = f"[{''.join(re.escape(letter) + re.escape(letter.lower()) for letter in letters)}]"
    for find in (_named_answer, _named_choice, _leading, _marked):
        found = find(text, one)
        if found is not None:
            return found.upper() if len(found) == 1 else None
    return None


def stated_text(answer: str) -> str | None:
    """The rest of the line after the last `answer is` or `answer:`, as `comparable`; None where there is none.

    A question that the model goes on to ask itself is not part of the answer.
    """
    texts = _TEXT.findall(_before_next_question(answer))
    return (comparable(texts[-1]) or None) if texts else None


def comparable(text: str) -> str:
    """A text without case, marks of bold type and formulas, spaces at its ends and a full stop."""
    while (plain := _COMMAND.sub(r"\1", text)) != text:
        text = plain
    return " ".join(text.strip("*_`$\"' ").removesuffix(".").strip("*_`$\"' ").casefold().split())


def _before_next_question(answer: str) -> str:
    """An answer up to the line on which the model asks itself the next question."""
    for question in _QUESTION.finditer(answer):
        before = answer[: question.start()]
        end = len(before.rstrip())
        if "\n" in before[end:]:
            return before[: before.index("\n", end)]
    return answer


def _named_answer(text: str, one: str) -> str | None:
    """The last letter that is called the answer; several letters where it names several, such as `(A) or (B)`."""
    return _last_named(text, one, f"(?:{_ANSWER})")


def _named_choice(text: str, one: str) -> str | None:
    """The last one that is called the right choice, or is chosen."""
    after = rf"|(?:\(({one})\)|\b({one.upper()})\b)(?=\W*+{_IS_RIGHT})"
    return _last_named(text, one, f"(?:{_CHOICE})", or_else=after)


def _last_named(text: str, one: str, named_by: str, *, or_else: str = "") -> str | None:
    bare = rf"{_ARTICLE}({one.upper()}|{one.lower()}(?=[).,*\]}}]|\s*$))(?!['\u2019]?[A-Za-z0-9])"
    letter = rf"(?:\(\s*({one})\s*(?:\)|$)|{bare})"
    for match in reversed(list(re.finditer(rf"{named_by}{_MARKS}{_FILLERS}{_MARKS}{letter}{or_else}", text))):
        if not _is_denied(text, match.end()):
            return _with_next(next(group for group in match.groups() if group), text[match.end() :], one)
    return None


def _with_next(found: str, rest: str, one: str) -> str:
    """A letter, and the one after it in `(A) or (B)`: then it is no answer."""
    also = re.match(rf"[\s*)]*(?:,|/|&|\bor\b|\band\b)[\s*]*\(({one})\)(?!\s*(?:is|are|was)\b)", rest)
    return found if also is None or also[1] == found else found + also[1]


def _leading(text: str, one: str) -> str | None:
    """The letter that the answer begins with, unless other options follow, a line each."""
    start = rf"[\s*_`\"$]*(?:\\boxed\{{)?(?:\(({one})\)|\[({one})\]|({one})(?=[).:\]*_`\",}}]|\s*$))"
    match = re.match(start, text)
    if match is None or _is_denied(text, match.end()):
        return None
    found = next(group for group in match.groups() if group)
    lines = (re.match(start, line) for line in text[match.end() :].split("\n")[1:])
    others = {next(group for group in line.groups() if group).upper() for line in lines if line}
    return None if others - {found.upper()} else _with_next(found, text[match.end() :], one)


def _marked(text: str, one: str) -> str | None:
    """The letter that is in brackets or in bold type, if it is only one."""
    letters = {letter.upper() for letter in _marked_letters(text, one)}
    return letters.pop() if len(letters) == 1 else None


def _marked_letters(text: str, one: str) -> Iterator[str]:
    for match in re.finditer(rf"\(({one})\)|\*\*\(?({one.upper()})\)?\.?\*\*", text):
        before = text[: match.start()].rstrip()[-_LONGEST_DENIAL:]
        if not re.search(_NOT_BEFORE, before) and not _is_denied(text, match.end()):
            yield match[1] or match[2]


def _is_denied(text: str, end: int) -> bool:
    """Whether what follows a letter says that it is wrong."""
    return re.match(rf"[\s)\]*_\"]*{_NOT_AFTER}", text[end:]) is not None
