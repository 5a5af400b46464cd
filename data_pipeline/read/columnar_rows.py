"""Rows of Parquet, Arrow and `datasets`: every object of a column has the keys of all of them, and nulls.

So `{"a": 6}` and `{"b": 7}` come back as `{"a": 6, "b": None}` and `{"a": None, "b": 7}`. Where the keys of an object
are text for the model (arguments of a call, a tool), nobody can tell which of the nulls were in the data.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from data_pipeline.errors import RowError

_MOST_LEVELS = 100


class ColumnarRow(dict[str, Any]):
    """A row whose objects may hold nulls for keys that they do not have."""


def refuse_filled_nulls(row: Mapping[str, Any], tools: str | None) -> None:
    """Raise RowError for a null inside an object whose keys the model sees: arguments of calls, and tools.

    tools: the key of the row that holds the tools.
    """
    if tools is not None:
        _refuse(row.get(tools), tools, tools)
    for key, value in row.items():
        for number, calls in enumerate(_calls(value)):
            for name, arguments in _arguments(calls):
                _refuse(arguments, f"{key}[{number}].tool_calls.{name}", name)


def _calls(value: Any) -> Iterator[Any]:
    """The calls of each message in a list of messages, in one message, or in columns of messages."""
    if isinstance(value, Mapping):
        calls = value.get("tool_calls")
        if isinstance(calls, list) and any(isinstance(entry, list) for entry in calls):
            yield from calls
        else:
            yield calls
    elif isinstance(value, list):
        yield from (message.get("tool_calls") if isinstance(message, Mapping) else None for message in value)


def _arguments(calls: Any) -> Iterator[tuple[str, Any]]:
    """(key, value) of all objects in calls; those of a call itself have keys that are known."""
    for call in calls if isinstance(calls, list) else ():
        parts: Sequence[Any] = (call, call.get("function")) if isinstance(call, Mapping) else ()
        for part in parts:
            if isinstance(part, Mapping):
                yield from ((key, value) for key, value in part.items() if key != "function")


def _refuse(value: Any, where: str, column: str) -> None:
    """Raise RowError for an object inside a value that has a null."""
    level = [(where, value)]
    for _ in range(_MOST_LEVELS):
        below: list[tuple[str, Any]] = []
        for place, item in level:
            if isinstance(item, Mapping):
                if (null := next((key for key, inner in item.items() if inner is None), None)) is not None:
                    problem = f"{place}.{null}: null, as a column of objects has for a missing key"
                    raise RowError("unreadable_value", f"{problem}; write `{column}` as JSON text (`json.dumps`)")
                below += [(f"{place}.{key}", inner) for key, inner in item.items()]
            elif isinstance(item, list):
                below += [(f"{place}[{number}]", inner) for number, inner in enumerate(item)]
        level = below
        if not level:
            return
