"""The pages of `ochat report` and `ochat ablate`: they have the run's figures, and nothing from data becomes
markup.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipeline.errors import UserError
from data_pipeline.prepared.dataset import manifest_digest
from data_pipeline.text_rules import visible
from ochat_train.ablation.results import AblationResults
from ochat_train.ablation.results_page import ablation_page
from ochat_train.cli.main import main
from ochat_train.recipe.load import load_recipe
from ochat_train.recipe.preparation import prepare_recipe
from ochat_train.report.curves import binned, smoothed
from ochat_train.report.heat import HEAT_STEPS, row_shades
from ochat_train.report.page import Section, text_cells
from ochat_train.report.pictures import Picture, Series, bar_chart, line_chart
from ochat_train.report.run_page import write_run_page
from tests.support.small_recipe import RecipeFactory

NASTY = "<script>alert(1)</script>&\"'$x$\u2028\x85"  # the last two end a line for str.splitlines
SHOWN = visible(NASTY)


class Page(HTMLParser):
    """Collects a page's text, headings, tags and attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.headings: list[str] = []
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str]] = []
        self._in_heading = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        self._in_heading = tag == "h2"

    def handle_endtag(self, tag: str) -> None:
        self._in_heading = False

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
        if self._in_heading:
            self.headings.append(data)


def step_row(step: int, names: list[str], **more: Any) -> dict[str, Any]:
    classes = {
        name: {
            "loss": 2.0 + math.sin(step),
            "accuracy": 0.5,
            "tokens": 10,
            "supervised_tokens": 5,
            "weight_share": 0.5,
            "effective_tokens": 5.0,
        }
        for name in names
    }
    return {
        "step": step,
        "epoch": 0,
        "loss": 2.0,
        "accuracy": 0.5,
        "weight": 5.0,
        "tokens": 20,
        "supervised_tokens": 10,
        "effective_tokens": 9.0,
        "classes": classes,
        "learning_rate": 1e-4,
        "grad_norm": 1.0,
        "nonfinite_steps": 0,
        "tokens_per_second": 1000.0,
        "mfu": None,
        "memory_gib": None,
        "data_wait_ratio": 0.0,
        **more,
    }


@pytest.fixture
def run_dir(tmp_path: Path, make_recipe: RecipeFactory) -> Path:
    """A run folder as training writes it, with nasty names, without training."""
    classes = {NASTY: {"condition": "GPT4 Correct", "weight": 1.0}, "suboptimal": {"condition": NASTY, "weight": 0.1}}
    raw = str(tmp_path / "expert.jsonl")
    sources = [{"path": raw, "format": "messages", "class": name} for name in classes]
    recipe = load_recipe(make_recipe(data__classes=classes, data__sources=sources, data__beta=None))
    prepare_recipe(recipe, num_workers=1, progress=lambda rows: None)
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "recipe.json").write_text(json.dumps(recipe.model_dump(mode="json", by_alias=True)))
    (folder / "prepared.json").write_text((Path(recipe.data.prepared_dir) / "manifest.json").read_text())
    write_rows(folder, "metrics", [step_row(step, list(classes)) for step in range(1, 31)])
    return folder


def write_rows(folder: Path, name: str, rows: list[dict[str, Any]], *, end: str = "") -> None:
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows) + end)


VALIDATION: dict[str, Any] = {
    "step": 30,
    "loss": 1.5,
    "classes": {
        name: {"loss": 1.2, "nll": 1.2, "accuracy": 0.61, "conversations": 29, "supervised_tokens": 290}
        for name in (NASTY, "suboptimal")
    },
    "conditions": ["GPT4 Correct", NASTY],
    "matrix": {NASTY: [1.2345, 1.3456], "suboptimal": [1.4567, 1.5678]},
    "learnt": {
        NASTY: {
            "condition": "GPT4 Correct",
            "nearest": NASTY,
            "margin": 0.1111,
            "low": 0.0999,
            "high": 0.1222,
            "learnt": True,
            "conversations": 29,
        }
    },
    "seconds": 1.0,
}


@pytest.fixture
def curves(monkeypatch: pytest.MonkeyPatch) -> list[Sequence[Series]]:
    """Pictures are not drawn, which takes most of the time of a page; their curves are collected."""
    drawn: list[Sequence[Series]] = []

    def line_chart(series: Sequence[Series], **_: Any) -> Picture:
        drawn.append(series)
        return Picture(wide="<svg></svg>", narrow="<svg></svg>")

    for module in ("run_page", "comparison_page"):
        monkeypatch.setattr(f"ochat_train.report.{module}.line_chart", line_chart)
    return drawn


def page_of(run_dir: Path) -> Page:
    write_run_page(run_dir, run_dir / "report.html")
    text = (run_dir / "report.html").read_text()
    page = Page(text)
    assert "script" not in page.tags
    assert not [value for name, value in page.attributes if name in ("src", "href") and not value.startswith("#")]
    assert "http" not in text.replace("http-equiv", "")
    return page


def test_everything_of_a_run_is_in_its_page(run_dir: Path) -> None:
    answers = [{"condition": c, "text": f"{c} says {NASTY}", "finished": c != NASTY} for c in VALIDATION["conditions"]]
    write_rows(run_dir, "validation", [{**VALIDATION, "step": 15, "loss": 9.0}, VALIDATION])
    write_rows(
        run_dir,
        "samples",
        [{"step": 15, "prompt": "old", "answers": []}, {"step": 30, "prompt": NASTY, "answers": answers}],
    )
    page = page_of(run_dir)
    assert page.headings == [
        "Was the conditioning learnt?",
        "This run",
        "Loss of each class",
        "Learning rate",
        "Throughput",
        "Gradient norm",
        "Condition matrix, step 30",
        "Classes",
        "Samples, step 30",
        "Ledger of the data",
        "Recipe",
    ]
    for text in (
        "1.2345",
        "1.3456",
        "1.4567",
        "1.5678",
        SHOWN,
        f"GPT4 Correct says {SHOWN}",
        f"{SHOWN} says {SHOWN} ...",
    ):
        assert text in page.texts
    assert "Yes for 1 of 1 classes." in page.texts
    assert f"{SHOWN}: yes: 0.1111 [0.0999, 0.1222] nats/token over {SHOWN}." in page.texts
    assert "old" not in page.texts
    assert page.attributes.count(("class", "outlined")) == 2


@pytest.mark.usefixtures("curves")
def test_weights_from_rows_are_shown_as_in_other_tables(run_dir: Path) -> None:
    manifest = json.loads((run_dir / "prepared.json").read_text())
    manifest["classes"][1] |= {"weight": None, "smallest_weight": 0.125, "largest_weight": 0.5}
    manifest["digest"] = manifest_digest(manifest)
    (run_dir / "prepared.json").write_text(json.dumps(manifest))
    assert "0.125 to 0.5" in page_of(run_dir).texts


@pytest.mark.usefixtures("curves")
def test_run_without_validation_says_so(run_dir: Path) -> None:
    page = page_of(run_dir)
    assert "Nothing was held out (data.validation_ratio) or validated yet, so this is not known." in page.texts
    assert not any("matrix" in heading or "Samples" in heading for heading in page.headings)


def test_killed_run_and_steps_without_figures(run_dir: Path) -> None:
    rows = [
        step_row(1, [NASTY, "suboptimal"]),
        step_row(2, [NASTY, "suboptimal"], loss=None, grad_norm=None, nonfinite_steps=1),
    ]
    rows[1]["classes"]["suboptimal"]["loss"] = None
    write_rows(run_dir, "metrics", rows, end='{"step": 3, "lo')
    page = page_of(run_dir)
    assert "1 step(s) were left out because loss or gradient was not finite." in page.texts
    assert "run: step 2, epoch 0, loss -" in page.texts


def test_long_runs_give_small_pages(run_dir: Path) -> None:
    write_rows(run_dir, "metrics", [step_row(step, [NASTY, "suboptimal"]) for step in range(1, 15_001)])
    page_of(run_dir)
    assert (run_dir / "report.html").stat().st_size < 500_000


def test_curve_of_bins_keeps_the_mean() -> None:
    bins = binned(np.arange(5.0), np.array([1.0, 3.0, np.nan, 5.0, 9.0]), most_points=2)
    assert (bins.x.tolist(), bins.low.tolist(), bins.mean.tolist(), bins.high.tolist()) == (
        [0, 3],
        [1, 5],
        [2, 7],
        [3, 9],
    )
    assert line_chart([Series(label="empty", x=[1], y=[None])], unit="x").wide.startswith("<svg")


@pytest.mark.usefixtures("curves")
def test_command(run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(run_dir), "--out", str(tmp_path / "page.html")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "page.html")
    assert (tmp_path / "page.html").is_file()
    for place, said in {
        tmp_path / "nowhere": "no such folder; name the recipe's `output_dir`",
        run_dir.with_name(run_dir.name + "s"): f"no such folder; did you mean `{run_dir.name}`?",
        run_dir.parent: "not a run folder",
    }.items():
        assert main(["report", str(place)]) == 2
        assert said in capsys.readouterr().err
    for out, said in {
        tmp_path / "nowhere" / "page.html": "is a folder, or its parent folder does not exist; name a file",
        tmp_path: "is a folder",
        tmp_path / "prepared" / "page.html": "is inside the prepared dataset, which may hold no other file",
        tmp_path / ("x" * 300): "cannot be written: File name too long",
    }.items():
        assert main(["report", str(run_dir), "--out", str(out)]) == 2
        assert f"--out {out}: {said}" in capsys.readouterr().err
    assert not list(tmp_path.rglob(".*.tmp"))
    (run_dir / "metrics.jsonl").write_text("")
    with pytest.raises(UserError, match="no step is written yet"):
        write_run_page(run_dir, tmp_path / "none.html")


def test_page_of_an_ablation() -> None:
    def score(accuracy: float) -> dict[str, Any]:
        learnt = {"condition": "A", "nearest": "", "margin": 0.5, "low": 0.25, "high": 0.75, "learnt": True}
        classes = {"nll": 1.25, "loss": 1.0, "accuracy": 0.5, "conversations": 13, "supervised_tokens": 130}
        return {
            "step": 7,
            "loss": 1.0,
            "classes": {NASTY: classes},
            "learnt": {NASTY: {**learnt, "conversations": 13}},
            "conditions": ["A", ""],
            "matrix": {NASTY: [1.25, 1.75]},
            "accuracy": {"A": {"sums": accuracy, "words": 0.0, "all": accuracy / 2}},
        }

    arms = {
        name: {"title": f"{name} {NASTY}", "conversations": 10, "epochs": 2.0, "scores": {"0": score(a), "1": score(b)}}
        for name, a, b in (("c-rlft", 0.5, 0.75), ("sft", 0.25, 0.25))
    }
    results = {
        "recipe": NASTY,
        "steps": 7,
        "seeds": 2,
        "reference": "c-rlft",
        "inference_class": NASTY,
        "inference_condition": "A",
        "arms": arms,
    }
    page = Page(ablation_page(AblationResults.from_json(results)))
    assert "script" not in page.tags
    matrices = [f"Condition matrix: {name} {SHOWN}, seed 0" for name in ("c-rlft", "sft")]
    assert page.headings == ["Arms", "Right answers", "Right answers by task", "Held-out nll", *matrices, "All figures"]
    assert page.texts.count(f"{SHOWN}: yes: 0.5000 [0.2500, 0.7500] nats/token over no condition.") == 2
    for text in ("31.2% ± 8.8%", "62.5% ± 17.7%", "12.5% ± 0.0%", "1.2500 ± 0.0000", "0.5000 ± 0.0000"):
        assert text in page.texts


def test_a_legend_shows_every_name() -> None:
    """matplotlib leaves out labels that begin with an underscore, unless they are set otherwise."""
    series = [Series(label=label, x=[1, 2], y=[1.0, 2.0]) for label in ("_x", "plain", "_")]
    texts = Page(line_chart(series, unit="nats").wide).texts
    assert [text.strip() for text in texts if text.strip() in ("_x", "plain", "_")] == ["_x", "plain", "_"]


def test_every_matrix_has_the_same_colours() -> None:
    """A difference that does not count has no colour, however the rest of its row looks: 0.0016 nats used to be full
    blue.
    """
    assert row_shades([0.7531, 0.7547, 0.7540, None]) == [0.0, 0.0, 0.0, 0.0]
    small, large = row_shades([1.0, 1.006, 1.05, 1.3, 2.0]), row_shades([0.0, 0.006, 9.0])
    assert small == [step.shade for step in HEAT_STEPS]
    assert large == [small[0], small[1], small[4]]
    assert small == sorted(set(small))


def test_a_page_shows_each_picture_once_on_wide_screens_and_once_on_phones(run_dir: Path) -> None:
    page_of(run_dir)
    text = (run_dir / "report.html").read_text()
    assert text.count('class="on-wide"') == text.count('class="on-narrow"') == text.count("<svg") / 2 == 4
    ids = re.findall(r' id="([^"]+)"', text)
    used = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', text))
    assert used <= set(ids)
    widths = {float(width) for width in re.findall(r'viewBox="0 0 ([\d.]+) ', text)}
    assert len(widths) == 2, widths


def test_a_moving_mean_stays_where_it_was() -> None:
    assert smoothed(np.arange(100.0)).tolist() == pytest.approx(np.arange(100.0).tolist())
    noisy = np.where(np.arange(400) % 2, 1.0, 3.0)
    found = smoothed(noisy)
    assert (found[0], found[-1]) == (noisy[0], noisy[-1])
    assert found[20:-20] == pytest.approx(2.0, abs=0.1)
    assert smoothed(noisy[:30]).tolist() == noisy[:30].tolist(), "a short curve is drawn as it is"


def test_short_names_for_pictures_are_escaped() -> None:
    for picture in (
        line_chart([Series(label=NASTY * 9, x=[1, 2], y=[1.0, 2.0]), Series(label="b", x=[1], y=[1.0])], unit=NASTY),
        bar_chart([NASTY * 9, "b"], [0.5, 1234.0], [0.1, None], unit=NASTY),
    ):
        for svg in (picture.wide, picture.narrow):
            assert "script" not in Page(svg).tags


@pytest.mark.usefixtures("curves")
def test_a_run_says_when_where_and_for_how_much_it_was_trained(run_dir: Path) -> None:
    names = [NASTY, "suboptimal"]
    write_rows(run_dir, "metrics", [step_row(step, names, time=f"2026-11-27T02:0{step}:00+00:00") for step in (1, 2)])
    hardware = {"ranks": 2, "device": "cuda", "gpu": "H100", "gpu_memory_gib": 79.1}
    start = {"step": 0, "time": "2026-11-27T00:02:00+00:00", "previous_end": None, "hardware": hardware}
    start["versions"] = {"torch": "2.13", "ochat-train": "0.1.0"}
    again = {**start, "step": 1, "time": "2026-11-27T02:00:00+00:00", "previous_end": "2026-11-27T01:00:00+00:00"}
    write_rows(run_dir, "starts", [start, again])
    texts = page_of(run_dir).texts
    for text in (
        "2026-11-27 00:02 UTC; last logged step 2026-11-27 02:02 UTC",
        "1:00:00 from start to last logged step (2 starts, lost steps included)",
        "2 x H100 (79.1 GiB)",
        "2.0 GPU-hours",
        "torch 2.13, ochat-train 0.1.0",
    ):
        assert text in texts, text
    write_run_page(run_dir, run_dir / "report.html", price=2.25)
    assert "2.0 GPU-hours, 4.50 at 2.25 each" in (run_dir / "report.html").read_text()


@pytest.mark.usefixtures("curves")
def test_a_run_of_an_older_version_says_what_is_not_recorded(run_dir: Path) -> None:
    assert page_of(run_dir).texts.count("not recorded: an older version started this run") == 5


@pytest.mark.usefixtures("curves")
def test_tables_that_are_too_wide_for_a_phone_name_the_column_of_each_cell(run_dir: Path) -> None:
    """There they are shown row by row, so that nothing is beyond the edge; small ones stay tables."""
    names = [value for name, value in page_of(run_dir).attributes if name == "data-head"]
    assert names.count("weight share") == 2, "the class table has two rows"
    small = Section(heading="x", head=["a", "b"], rows=[text_cells(["1", "2"])])
    assert not small.has_big_table
    assert replace(small, rows=[text_cells(["1", "2" * 61])]).has_big_table
    assert replace(small, head=["a"] * 6).has_big_table
    assert replace(small, head=["class", "runs/quickstart", "/data/runs/quickstart"]).has_big_table, "nowhere to break"
    assert not replace(small, head=["class", "runs / quickstart", "/data / runs / quickstart"]).has_big_table, (
        "the control"
    )
