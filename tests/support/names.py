"""Names of classes that some place or other cannot hold."""

from __future__ import annotations

HARD_NAMES = (
    "_x",
    "x",
    "a b",
    "a_b",
    "a-b",
    "a/b",
    "../a",
    ".",
    "..",
    ".hidden",
    "-rf",
    "ü",
    "u",
    "u\u0308",
    "Expert",
    "expert",
    "gut bewertet",
    "👍",
    "👎",
    "日本",
    'it\'s "q"',
    "$x$",
    "c-rlft",
    " space ",
)
