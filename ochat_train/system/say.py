"""Lines for people, on standard error."""

from __future__ import annotations

import sys

from tqdm import tqdm

from data_pipeline.text_rules import visible


def say(text: str) -> None:
    """Print lines to stderr, above the progress line if there is one. Any thread may call it.

    The text may hold users' data and a model's answers: control characters, which a terminal would obey, are escaped.
    """
    tqdm.write(visible(text), file=sys.stderr)
