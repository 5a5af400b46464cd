"""What text may hold, and how a value is shown in a message."""

from __future__ import annotations

import difflib
import json
import unicodedata
from collections.abc import Sequence
from typing import Any

# U+FDD0 is a Unicode noncharacter, reserved for use inside a program. The exported chat template puts it into control
# strings that a person typed, and the tokenizer removes it again (see prompt/chat_template.py); so no text may hold it.
RESERVED_CHARACTER = "\ufdd0"
_MARKDOWN = r"\`*_{}[]<>()#+!|&"


def shown(value: object) -> str:
    """A value for a message: short, and free of characters that cannot be printed."""
    text = repr(value).encode("ascii", "backslashreplace").decode()
    return text if len(text) <= 60 else text[:57] + "..."


def visible(text: str, *, kept: str = "\n\t") -> str:
    """A text that is safe to show to people: control, formatting and unassigned characters as JSON writes them
    (`\\u001b`).

    So no text can move the cursor, colour a terminal, turn the direction of its surroundings or hide between letters.
    kept: characters that stay. Joiners stay too (emoji and several scripts need them), and spaces of any width.
    A JSON document stays the same document.
    """
    if text.isprintable():
        return text
    return "".join(c if _is_harmless(c) or c in kept else json.dumps(c)[1:-1] for c in text)


def visible_line(text: str) -> str:
    """The same in one line: the characters that end lines are written as JSON writes them too."""
    return visible(text, kept="")


def quoted(text: str) -> str:
    """A whole text that is safe to show, in quotes, so that people see an empty one, and where it ends."""
    return f"'{visible_line(text)}'"


def some_names(names: Sequence[object], most: int = 3) -> str:
    """The first names, and whether there are more."""
    return ", ".join(map(str, names[:most])) + (", ..." if len(names) > most else "")


def markdown_text(text: str) -> str:
    """A text in one line of Markdown, with the special characters of Markdown and HTML escaped."""
    line = visible_line(" ".join(text.split()))
    return "".join(f"&#{ord(character)};" if character in _MARKDOWN else character for character in line)


def _is_harmless(character: str) -> bool:
    return character.isprintable() or character in "\u200c\u200d" or unicodedata.category(character) in ("Zs", "Co")


def text_problem(text: str) -> str | None:
    """Why a text cannot be tokenized, None where it can."""
    if text.isascii():  # known without looking at the characters
        return None
    if RESERVED_CHARACTER in text:
        return "holds U+FDD0, a noncharacter that text may not contain; remove it"
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return f"has half of a surrogate pair as character {error.start}; repair the text"
    return None


def did_you_mean(word: str, known: Any) -> str:
    """`did you mean X?` for the known name nearest to `word`, or an empty text."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"did you mean `{close[0]}`?" if close else ""
