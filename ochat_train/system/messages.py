"""All that is printed: results on standard output, messages on standard error.

Everything may hold text of users' data, of file names or of a model's answers. So everything goes through
`text_rules.visible`: nothing can move the cursor, colour the terminal, turn the direction of the text, or hide. A test
looks for other calls of `print`.
"""

from __future__ import annotations

import contextlib
import sys
from typing import TextIO

from tqdm import tqdm

from data_pipeline.text_rules import visible


def print_result(text: object) -> None:
    """Print a result to stdout. A JSON document stays the same document."""
    print_marked(visible(str(text)))


def print_marked(line: str) -> None:
    """Print a line with colours to stdout, whose pieces have been through `visible` one by one."""
    print(_encodable(line, sys.stdout))


def print_piece(text: str) -> None:
    """Print a piece of a line to stdout, at once: an answer that is still being written."""
    sys.stdout.write(_encodable(visible(text), sys.stdout))
    sys.stdout.flush()


def print_error(text: object) -> None:
    """Print the error that ends a command to stderr."""
    print(_encodable(visible(str(text)), sys.stderr), file=sys.stderr)


def print_message(text: str) -> None:
    """Print lines to stderr, above the progress line if there is one. Any thread may call it.

    The text may contain users' data or a model's answers, so control characters, which a terminal would obey, are
    escaped. Lines that cannot be written (a full disk behind a log file) are lost, and end nothing.
    """
    with contextlib.suppress(OSError):
        tqdm.write(_encodable(visible(text), sys.stderr), file=sys.stderr)


def _encodable(text: str, stream: TextIO) -> str:
    """The text with numbers in the place of characters that a terminal's encoding does not have."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return text.encode(encoding, errors="backslashreplace").decode(encoding)
