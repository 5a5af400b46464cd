"""API keys: only their hashes are kept, and a comparison takes the same time whichever is right."""

from __future__ import annotations

import hashlib
import hmac
import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from data_pipeline.errors import UserError
from data_pipeline.json_files import read_text

KEYS_VARIABLE = "OCHAT_API_KEYS"


class Keys:
    """The keys that are allowed, as SHA-256 hashes. A text of it shows how many there are, and none of them."""

    def __init__(self, keys: Iterable[str] = ()) -> None:
        self._hashes = frozenset(_hash(key.encode()) for key in keys)

    def __len__(self) -> int:
        return len(self._hashes)

    def __repr__(self) -> str:
        return f"Keys({len(self)} keys)"

    def allow(self, authorization: bytes | None) -> bool:
        """Whether an Authorization header holds one of the keys. Every key is compared: the time says nothing."""
        scheme, _, key = (authorization or b"").partition(b" ")
        given = _hash(key.strip())
        found = False
        for known in self._hashes:
            found |= hmac.compare_digest(known, given)
        return found and scheme.lower() == b"bearer"


def read_keys(arguments: Sequence[str], file: Path | None, environment: Mapping[str, str]) -> Keys:
    """All keys of the command line, of a file (one a line, `#` begins a comment) and of the environment (with spaces or
    commas between them). Raises UserError for keys that hold what a header cannot, and for a place that was named
    and holds none.
    """
    found = [(f"--api-keys, key {number}", key) for number, key in enumerate(arguments, 1)]
    if file is not None:
        found += _of_file(file)
    if (text := environment.get(KEYS_VARIABLE)) is not None:
        keys = text.replace(",", " ").split()
        if not keys:
            raise UserError(KEYS_VARIABLE, "holds no key", "unset it for a server without keys")
        found += [(f"{KEYS_VARIABLE}, key {number}", key) for number, key in enumerate(keys, 1)]
    for place, key in found:
        _check(place, key)
    return Keys(key for _, key in found)


def _of_file(file: Path) -> list[tuple[str, str]]:
    text = read_text(file).removeprefix("\ufeff")  # a mark of the byte order, as editors of Windows write it
    lines = [line.strip() for line in text.splitlines()]
    keys = [(f"{file}, line {n}", line) for n, line in enumerate(lines, 1) if line and not line.startswith("#")]
    if not keys:
        raise UserError(file, "holds no key", "write one key a line, or leave the file out")
    return keys


def readable_by_others(file: Path) -> bool:
    """Whether other users of this machine can read a file of keys."""
    return bool(os.stat(file).st_mode & (stat.S_IRGRP | stat.S_IROTH))


def _check(place: str, key: str) -> None:
    """The error names the place, never the key."""
    if not (key and key.isascii() and key.isprintable()) or " " in key:
        raise UserError(
            place, "is empty or holds a character that an HTTP header cannot", "use letters, digits, `-` and `_`"
        )


def _hash(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
