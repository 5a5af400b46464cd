"""Results that others would replace: kept where they have something that the new ones have not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from ochat_train.respondents.earlier import keep_earlier
from ochat_train.suites.results import EvalResults, ModelFacts
from ochat_train.suites.results_file import read_results, write_results
from tests.support.eval_results import CONDITIONS, eval_results

PAGE = "results.html"
EARLIER = eval_results()


def with_limit(limit: int | None) -> EvalResults:
    return replace(EARLIER, settings=replace(EARLIER.settings, limit=limit))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda r: replace(r, suites=r.suites[:1]), "talk"),
        (lambda r: replace(r, harness=()), "tiny"),
        (lambda r: replace(r, conditions=CONDITIONS[:1]), "GPT3"),
        (lambda r: replace(r, model=ModelFacts(name="made-up", kind="export", sha256="9" * 64)), "another model"),
        (lambda r: replace(r, settings=replace(r.settings, temperature=0.5)), "other settings"),
        (lambda r: replace(r, settings=replace(r.settings, limit=5)), "more questions"),
    ],
)
def test_results_with_something_of_their_own_are_kept(
    change: Callable[[EvalResults], EvalResults], named: str, tmp_path: Path
) -> None:
    for number in ("", "-2"):
        path = write_results(tmp_path, EARLIER)
        (tmp_path / PAGE).write_text("page")
        kept = f"results-20260102T030405{number}"
        said = keep_earlier(tmp_path, change(EARLIER), page=PAGE)
        assert said == f"{path} had other results ({named}); they are kept in {kept}.json"
        assert read_results(tmp_path / f"{kept}.json") == EARLIER
        assert (tmp_path / f"{kept}.html").read_text() == "page"
        assert not path.exists()


@pytest.mark.parametrize(
    ("earlier", "new"),
    [
        (EARLIER, EARLIER),
        (with_limit(5), with_limit(6)),
        (with_limit(5), EARLIER),
        (replace(EARLIER, suites=EARLIER.suites[:1], harness=(), conditions=CONDITIONS[:1]), EARLIER),
    ],
)
def test_results_that_the_new_ones_have_all_of_are_replaced(
    earlier: EvalResults, new: EvalResults, tmp_path: Path
) -> None:
    write_results(tmp_path, earlier)
    assert keep_earlier(tmp_path, new, page=PAGE) is None
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]


def test_a_damaged_file_and_an_empty_folder_are_no_obstacle(tmp_path: Path) -> None:
    assert keep_earlier(tmp_path, EARLIER, page=PAGE) is None
    path = write_results(tmp_path, EARLIER)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert keep_earlier(tmp_path, EARLIER, page=PAGE) is None
