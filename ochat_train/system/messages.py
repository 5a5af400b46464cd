"""Messages for the user, on standard error."""

from __future__ import annotations

import contextlib
import sys

from tqdm import tqdm

from data_pipeline.text_rules import visible


def print_message(text: str) -> None:
    """Print lines to stderr, above the progress line if there is one. Any thread may call it.

    The text may contain users' data or a model's answers, so control characters, which a terminal would obey, are
    escaped. Lines that cannot be written (a full disk behind a log file) are lost, and end nothing.
    """
    with contextlib.suppress(OSError):
        tqdm.write(visible(text), file=sys.stderr)
