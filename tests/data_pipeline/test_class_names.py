"""Names of classes in files and curves: as they are where they can be, and never two the same."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from data_pipeline.class_names import class_name_problem, curve_names, file_names, short_file_name
from data_pipeline.errors import UserError
from ochat_train.recipe.load import load_recipe
from tests.support.names import HARD_NAMES
from tests.support.small_recipe import RecipeFactory

PLAIN = ("expert", "suboptimal", "gpt-4", "GPT3.5_turbo", "q10")


def test_plain_names_stay_whatever_the_others_are() -> None:
    for make in (file_names, curve_names):
        made = make([*PLAIN, *HARD_NAMES, *PLAIN])
        assert list(made) == list(dict.fromkeys([*PLAIN, *HARD_NAMES]))
        kept = {name: made[name] for name in PLAIN if name != "expert"}
        assert kept == {name: name for name in PLAIN if name != "expert"}
    assert file_names(["expert"]) == {"expert": "expert"}
    assert file_names(["Expert", "expert"])["expert"] != "expert", "control: another one differs only in its capital"


def test_names_of_files_are_plain_and_stay_apart_on_every_disk(tmp_path: Path) -> None:
    made = file_names(HARD_NAMES)
    assert len({name.casefold() for name in made.values()}) == len(HARD_NAMES)
    assert all(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,39}", name) for name in made.values())
    for name in made.values():
        (tmp_path / name).mkdir()
    assert len(list(tmp_path.iterdir())) == len(HARD_NAMES)
    assert file_names(reversed(HARD_NAMES)) == made, "the order does not matter"
    assert file_names(["weights"], taken=["weights"])["weights"] != "weights"
    longs = [short_file_name("x" * 50 + end, most_characters=30) for end in "ab"]
    assert [len(name) for name in longs] == [30, 30]
    assert longs[0] != longs[1]
    assert short_file_name("x" * 30, most_characters=30) == "x" * 30


def test_curves_stay_apart_also_where_tensorboard_changes_characters() -> None:
    made = curve_names(HARD_NAMES)
    shown = [re.sub(r"[^-/\w.]", "_", name) for name in made.values()]
    assert len(set(shown)) == len(HARD_NAMES)
    assert not any("/" in name for name in made.values())
    assert curve_names(["GPT4 Correct", "no condition"]) == {name: name for name in ("GPT4 Correct", "no condition")}
    control = [re.sub(r"[^-/\w.]", "_", name) for name in HARD_NAMES]
    assert len(set(control)) < len(HARD_NAMES), "control: unchanged, some become one"


@pytest.mark.parametrize(("name", "problem"), [("", "is empty"), ("  ", "is empty"), ("a\ufdd0", "holds U+FDD0")])
def test_names_that_no_file_can_hold_are_refused(name: str, problem: str, make_recipe: RecipeFactory) -> None:
    classes = {name: {"condition": "A", "weight": 1.0}, "suboptimal": {"condition": "B", "weight": 1.0}}
    path = make_recipe(data__classes=classes, data__beta=None)
    with pytest.raises(UserError, match=re.escape(problem)):
        load_recipe(path)
    assert "half of a surrogate pair" in str(class_name_problem("\ud800"))
    assert [class_name_problem(hard) for hard in HARD_NAMES] == [None] * len(HARD_NAMES)
