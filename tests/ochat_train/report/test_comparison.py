"""`ochat report RUN RUN ...`: what is on the page, for runs of other lengths, classes, conditions and versions."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from ochat_train.cli.main import main
from ochat_train.report.comparison_page import differences
from ochat_train.report.pictures import Series
from tests.ochat_train.report.test_report import NASTY, SHOWN, VALIDATION, Page, curves, run_dir, step_row, write_rows

__all__ = ["curves", "run_dir"]


def page_of(*runs: Path, options: tuple[str, ...] = ()) -> Page:
    out = runs[0].parent / "page.html"
    assert main(["report", *map(str, runs), "--out", str(out), *options]) == 0
    text = out.read_text()
    page = Page(text)
    assert "script" not in page.tags
    assert "http" not in text.replace("http-equiv", "")
    return page


@pytest.fixture
def second(run_dir: Path) -> Path:
    """A longer run of another learning rate, trained elsewhere, of one class of the first and one of its own."""
    folder = run_dir.parent / "second"
    shutil.copytree(run_dir, folder)
    recipe = json.loads((folder / "recipe.json").read_text())
    recipe["optimizer"]["learning_rate"] = 0.125
    recipe["name"] = "second"
    (folder / "recipe.json").write_text(json.dumps(recipe))
    rows = [step_row(step, ["suboptimal", "own"], time=f"2026-11-27T01:{step:02d}:00+00:00") for step in range(1, 51)]
    write_rows(folder, "metrics", rows)
    start: dict[str, Any] = {
        "step": 0,
        "time": "2026-11-27T00:50:00+00:00",
        "previous_end": None,
        "hardware": {"ranks": 4, "device": "cuda", "gpu": f"H100 {NASTY}", "gpu_memory_gib": 79.1},
        "versions": {"torch": "2.11"},
    }
    write_rows(folder, "starts", [start])
    other = {**VALIDATION, "step": 50, "loss": 1.25, "conditions": ["A", "B", "C"], "learnt": {}}
    other["classes"] = {"own": VALIDATION["classes"]["suboptimal"]}
    write_rows(folder, "validation", [{**other, "matrix": {"own": [2.5, 2.501, 3.5]}}])
    return folder


def test_two_runs_on_one_page(run_dir: Path, second: Path, curves: list[Sequence[Series]]) -> None:
    write_rows(run_dir, "validation", [VALIDATION])
    page = page_of(run_dir, second, options=("--price", "3"))
    assert page.headings == [
        "Final numbers",
        "Recipes",
        "Was the conditioning learnt?",
        "Training loss",
        "Training loss of class suboptimal",
        "Held-out loss",
        "Learning rate",
        "Throughput",
        "Gradient norm",
        "Condition matrices",
    ]
    for text in (
        "1.5000 (step 30)",
        "1.2500 (step 50)",
        "optimizer.learning_rate",
        "0.125",
        "1.2345",
        "2.5010",
        f"4 x H100 {SHOWN} (79.1 GiB)",
        "4.0 GPU-hours, 12.00 at 3 each",
        "2026-11-27 00:50 UTC; last logged step 2026-11-27 01:50 UTC",
        "not recorded: an older version started this run",
        "not measured",
    ):
        assert text in page.texts, text
    assert "optimizer.weight_decay" not in page.texts, "only keys that differ"
    assert "output_dir" not in page.texts
    loss, suboptimal, held_out, *_ = curves
    for chart in (loss, suboptimal):
        assert [(curve.label, len(curve.x), curve.number) for curve in chart] == [("run", 30, 0), ("second", 50, 1)]
    assert [(list(curve.x), list(curve.y)) for curve in held_out] == [([30], [1.5]), ([50], [1.25])]


def test_only_values_that_differ_are_listed() -> None:
    recipes = [{"a": "1", "b": "2", "output_dir": "x", "n": "null"}, {"a": "1", "b": "3", "output_dir": "y", "c": "4"}]
    assert differences(recipes) == {"b": ["2", "3"], "c": ["-", "4"]}


@pytest.mark.usefixtures("curves")
def test_runs_of_one_name_have_their_paths(run_dir: Path, tmp_path: Path) -> None:
    again = tmp_path / "again" / "run"
    shutil.copytree(run_dir, again)
    page = page_of(run_dir, again)
    assert {str(run_dir), str(again)} <= set(page.texts)
    assert "The recipes are the same." in page.texts
    assert "All were trained and scored on the same prepared dataset." in page.texts


@pytest.mark.usefixtures("curves")
def test_what_is_not_a_run_is_refused(run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "ablation").mkdir()  # it has a recipe, without `output_dir`
    recipe = json.loads((run_dir / "recipe.json").read_text())
    (tmp_path / "ablation" / "recipe.json").write_text(json.dumps({**recipe, "output_dir": None}))
    for runs, said in (
        ([run_dir, tmp_path / "ablation"], "the runs of an ablation are in its folders ARM/seed-N"),
        ([run_dir, tmp_path / "empty"], "not a run folder"),
        ([run_dir, tmp_path / "run" / ".." / "run"], "is named twice"),
    ):
        assert main(["report", *map(str, runs)]) == 2
        assert said in capsys.readouterr().err
    assert not list(tmp_path.rglob("comparison.html"))
    shutil.copytree(run_dir, tmp_path / "second")
    assert main(["report", str(run_dir), str(tmp_path / "second")]) == 0
    assert capsys.readouterr().out.strip() == str(run_dir / "comparison.html")
    assert main(["report", str(run_dir), str(tmp_path / "second"), "--out", str(tmp_path / "prepared" / "x.html")]) == 2
    assert "is inside the prepared dataset" in capsys.readouterr().err


def test_the_curves_of_runs_are_drawn(run_dir: Path, second: Path) -> None:
    page = page_of(run_dir, second)
    assert page.attributes.count(("class", "on-narrow")) == 6
    assert [text.strip() for text in page.texts].count("second") >= 2 * 6, "in every legend"
