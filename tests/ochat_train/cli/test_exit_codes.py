"""Exit code 0 only on success: also where nobody reads what is printed any more."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from ochat_train.cli.main import main
from tests.support.small_recipe import RecipeFactory


class LeftReader(io.StringIO):
    """A pipe whose reader has ended."""

    def write(self, text: str) -> int:
        raise BrokenPipeError


def test_only_inspect_may_lose_its_reader(
    make_recipe: RecipeFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`ochat inspect ... | head` is no failure; a training that can no longer speak has not succeeded."""
    recipe = make_recipe()
    assert main(["prepare", str(recipe), "--workers", "1"]) == 0
    monkeypatch.setattr("sys.stdout", LeftReader())
    assert main(["inspect", str(tmp_path / "prepared")]) == 0
    monkeypatch.setattr("sys.stdout", LeftReader())
    with pytest.raises(BrokenPipeError):
        main(["prepare", str(recipe)])
