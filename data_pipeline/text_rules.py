"""What text may hold, and how a value is shown in a message."""

from __future__ import annotations

# U+FDD0 is a Unicode noncharacter, reserved for use inside a program. The exported chat template puts it into control
# strings that a person typed, and the tokenizer removes it again (see templates.py); so no text may hold it.
RESERVED_CHARACTER = "\ufdd0"


def shown(value: object) -> str:
    """A value as it may stand in a message: short, and free of characters that cannot be printed."""
    text = repr(value).encode("ascii", "backslashreplace").decode()
    return text if len(text) <= 60 else text[:57] + "..."


def text_problem(text: str) -> str | None:
    """Why a text cannot be tokenized, None where it can."""
    if RESERVED_CHARACTER in text:
        return "holds U+FDD0, a noncharacter that text may not contain; remove it"
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return f"has half of a surrogate pair as character {error.start}; repair the text"
    return None
