"""Errors that tests measure and print."""

from __future__ import annotations

from collections.abc import Callable

MEASURED = "measured: "  # how the figures of `measured` are told from other properties of a test


Measured = Callable[[str, float], None]
