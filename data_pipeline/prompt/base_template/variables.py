"""Which variables a recipe may give to a template."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_TAKEN = frozenset(("messages", "tools", "documents", "add_generation_prompt", "condition", "continuing"))


def template_variable_problems(variables: Mapping[str, Any]) -> list[str]:
    """What is wrong with `model.template_variables`, for people."""
    problems = []
    for name, value in variables.items():
        where = f"template_variables.{name}"
        if not name.isidentifier() or name.startswith(("_", "ochat_")):
            problems.append(f"{where}: is not the name of a variable")
        elif name in _TAKEN:
            problems.append(f"{where}: every conversation has its own")
        if not _is_json(value):
            problems.append(f"{where}: expected text, a number, true, false, null, or a list or mapping of these")
    return problems


def _is_json(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_json(item) for key, item in value.items())
    if isinstance(value, list):
        return all(map(_is_json, value))
    return value is None or isinstance(value, str | int | float)
