"""Errors of the `tokenizers` library, which raises bare exceptions, as errors of the user's tokenizer files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tokenizers import Tokenizer

from data_pipeline.errors import UserError

TOKENIZER_REMEDY = "get the tokenizer's files again, or name another `model.tokenizer`"
_PANIC = "PanicException"  # what a panic of Rust code becomes in Python; its base class is BaseException
_MOST_CHARACTERS = 200


def stored_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a `tokenizer.json`. Raises UserError for one that the library cannot read."""
    with tokenizers_errors(path):
        return Tokenizer.from_file(str(path))


@contextmanager
def tokenizers_errors(place: str | Path) -> Iterator[None]:
    """Turns what the library raises inside the block into a UserError: a file that it cannot read, or a tokenizer that
    cannot tokenize a text (a vocabulary without the unknown token that it needs).
    """
    try:
        yield
    except UserError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != _PANIC:
            raise
        lines = str(error).splitlines() or [type(error).__name__]
        raise UserError(
            place, f"the tokenizers library fails: {lines[0][:_MOST_CHARACTERS]}", TOKENIZER_REMEDY
        ) from None
