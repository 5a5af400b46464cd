"""The text of an error, and that it survives the way from a worker process."""

from __future__ import annotations

import pickle

import pytest

from data_pipeline.errors import Problem, UserError, UserErrors

SEVERAL = UserErrors(
    "recipe.yaml",
    "2 problems",
    [Problem(place="a", problem="1\n  example", remedy="fix it"), Problem(place="b", problem="missing")],
    "Repair them.",
)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (UserError("a.yaml", "is missing", "name another"), "a.yaml: is missing; name another"),
        (UserError("a.yaml", "is missing"), "a.yaml: is missing"),
        (SEVERAL, "recipe.yaml: 2 problems\n  a: 1\n    example; fix it\n  b: missing\nRepair them."),
        (UserErrors("a", "1 problem", [Problem(place="b", problem="c")]), "a: 1 problem\n  b: c"),
    ],
)
def test_the_text_of_an_error_and_of_its_copy(error: UserError, text: str) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), copy.problems) == (type(error), text, error.problems)
    assert str(error) == text


def test_the_problems_of_an_error_are_values() -> None:
    assert UserError("a", "b", "c").problems == (Problem(place="a", problem="b", remedy="c"),)
    assert [problem.place for problem in SEVERAL.problems] == ["a", "b"]
