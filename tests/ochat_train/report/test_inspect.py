"""When `ochat inspect` colours its report."""

from __future__ import annotations

import pytest

from ochat_train.report.inspect import wants_color


@pytest.mark.parametrize(
    ("choice", "is_terminal", "environment", "wanted"),
    [
        ("auto", True, {}, True),
        ("auto", False, {}, False),
        ("auto", True, {"NO_COLOR": "1"}, False),
        ("auto", True, {"NO_COLOR": ""}, True),  # as https://no-color.org says
        ("auto", True, {"TERM": "dumb"}, False),
        ("always", False, {"NO_COLOR": "1"}, True),
        ("never", True, {}, False),
    ],
)
def test_color_is_for_terminals_unless_something_says_otherwise(
    choice: str, is_terminal: bool, environment: dict[str, str], wanted: bool
) -> None:
    assert wants_color(choice, is_terminal=is_terminal, environment=environment) == wanted
