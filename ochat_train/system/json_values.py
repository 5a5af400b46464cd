"""Frozen results read back from JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any


def fields_from(kind: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a dataclass's fields, as arguments for it. Keys that it does not know are left out.

    Raises KeyError for a field that is missing.
    """
    return {field.name: values[field.name] for field in fields(kind)}


def finite_or_none(value: float) -> float | None:
    """A number as JSON can hold it: None for NaN and infinity."""
    return value if math.isfinite(value) else None
