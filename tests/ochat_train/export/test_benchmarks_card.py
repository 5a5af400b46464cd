"""Results of `ochat eval` in a model card: as the Hub reads them, of this export only, nothing else changed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from data_pipeline.errors import UserError
from data_pipeline.files import sha256_of_file
from ochat_train.cli.main import main
from ochat_train.export.benchmarks_card import add_results
from ochat_train.export.layout import exported_names, weights_sha256
from ochat_train.hub.push import exported_files
from ochat_train.suites.results import ModelFacts
from ochat_train.suites.results_file import write_results
from tests.support.eval_results import CONDITIONS, NASTY, eval_results

CARD = """---
license: mit
tags:
- a
---

# small

Text --- and more.

## Training data

The end.
"""


@pytest.fixture
def export_dir(tmp_path: Path) -> Path:
    """A folder that is an export as far as its files go."""
    folder = tmp_path / "export"
    folder.mkdir()
    (folder / "README.md").write_text(CARD)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    files = {file.name: sha256_of_file(file) for file in folder.iterdir()}
    (folder / "ochat.json").write_text(json.dumps({"step": 3, "files": files}))
    return folder


def sha256_of(folder: Path) -> str:
    files = exported_names((folder / "ochat.json").read_bytes())
    assert files is not None
    return weights_sha256(files)


def results_of(folder: Path, **more: Any) -> Any:
    return eval_results(weights_sha256=sha256_of(folder), **more)


def rows_of(card: str) -> list[list[str]]:
    """The cells of the table, as a Markdown parser reads them."""
    rows: list[list[str]] = []
    tokens = MarkdownIt("commonmark").enable("table").parse(card.split("---\n", 2)[2])
    for token in tokens:
        if token.type == "tr_open":
            rows.append([])
        elif token.type == "inline" and rows and token.level >= 3:
            rows[-1].append("".join(part.content for part in token.children or []))
    return rows


def test_the_hub_reads_the_figures_with_their_conditions(export_dir: Path) -> None:
    add_results(export_dir, results_of(export_dir))
    data = ModelCard((export_dir / "README.md").read_text()).data
    found = {(e.dataset_type, e.metric_args["condition"]): e for e in data.eval_results}
    assert {key: entry.metric_value for key, entry in found.items()} == {
        ("arithmetic", CONDITIONS[0]): 0.75,
        ("arithmetic", CONDITIONS[1]): 0.25,
        ("talk", CONDITIONS[0]): 6.0,
        ("talk", CONDITIONS[1]): 5.0,
        ("tiny", CONDITIONS[1]): 0.25,
    }
    first = found["arithmetic", CONDITIONS[0]]
    assert (first.task_type, first.metric_type, first.dataset_name) == (
        "text-generation",
        "accuracy",
        "The arithmetic suite",
    )
    tiny = found["tiny", CONDITIONS[1]]
    assert (tiny.metric_type, tiny.metric_name) == ("exact_match", 'exact_match, strict, condition "GPT3"')
    assert first.metric_args["questions_seen_in_training"] == 2
    assert first.metric_args["questions"] == 12
    assert data.model_name == "small"
    assert data["license"] == "mit"
    index = data.to_dict()["model-index"]
    assert [len(entry["metrics"]) for entry in index[0]["results"]] == [2, 2, 1]


def test_the_table_has_the_same_figures_before_the_training_data(export_dir: Path) -> None:
    add_results(export_dir, results_of(export_dir))
    card = (export_dir / "README.md").read_text()
    rows = rows_of(card)
    assert rows[1][:3] == ["The arithmetic suite", '"GPT4 Correct"', "75.0%"]
    assert rows[1][5:] == ["12 of 12", "2"]
    assert rows[3][2] == "6.00"
    assert rows[5][2] == "0.2500 ± 0.0123 (standard error)"
    assert card.index("Text --- and more.") < card.index("## Benchmarks") < card.index("## Training data")


def test_a_second_call_replaces_the_first_and_keeps_the_rest(export_dir: Path) -> None:
    add_results(export_dir, results_of(export_dir))
    before = (export_dir / "README.md").read_text()
    edited = before.replace("license: mit", "license: mit\nlanguage: de").replace("The end.", "The very end.")
    (export_dir / "README.md").write_text(edited)
    only_one = results_of(export_dir, harness=())
    add_results(export_dir, replace(only_one, scores=only_one.scores[:1]))
    card = (export_dir / "README.md").read_text()
    data = ModelCard(card).data
    assert len(data.eval_results) == 5  # those of other benchmarks stay
    assert data["language"] == "de"
    assert card.count("## Benchmarks") == 1
    assert len(rows_of(card)) == 2
    assert "The very end." in card


def test_the_export_stays_one_that_can_be_pushed(export_dir: Path) -> None:
    add_results(export_dir, results_of(export_dir))
    files = {file.name: file.sha256 for file in exported_files(export_dir)}
    names = exported_names((export_dir / "ochat.json").read_bytes())
    assert names is not None
    assert names["README.md"] == files["README.md"]
    assert json.loads((export_dir / "ochat.json").read_text())["step"] == 3


def test_a_card_that_a_person_edited_stays_known_as_edited(export_dir: Path) -> None:
    mark = (export_dir / "ochat.json").read_bytes()
    (export_dir / "README.md").write_text(CARD + "\nMine.\n")
    add_results(export_dir, results_of(export_dir))
    assert (export_dir / "ochat.json").read_bytes() == mark
    assert "Mine." in (export_dir / "README.md").read_text()


@pytest.mark.parametrize(
    ("model", "problem"),
    [
        (ModelFacts(name="other", kind="export", weights_sha256="9" * 64), "are of other weights"),
        (ModelFacts(name="served", kind="url", url="http://h"), "are of a server"),
    ],
)
def test_results_of_another_model_are_refused_and_nothing_is_written(
    model: ModelFacts, problem: str, export_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {file.name: file.read_bytes() for file in export_dir.iterdir()}
    file = write_results(tmp_path, results_of(export_dir, model=model))
    assert main(["push", str(export_dir), "--repo", "org/name", "--results", str(file)]) == 2
    assert problem in capsys.readouterr().err
    assert {file.name: file.read_bytes() for file in export_dir.iterdir()} == before


def test_names_from_data_stay_text(export_dir: Path) -> None:
    results = results_of(export_dir, harness=())
    row = replace(results.scores[0], condition=NASTY)
    facts = replace(results.suites[0], title=NASTY)
    add_results(export_dir, replace(results, scores=(row,), suites=(facts,), contamination=()))
    card = (export_dir / "README.md").read_text()
    html = MarkdownIt("commonmark").enable("table").render(card.split("---\n", 2)[2])
    assert "<script>" not in html
    assert "<img" not in html
    assert len(rows_of(card)[1]) == 7
    [entry] = ModelCard(card).data.eval_results
    assert entry.metric_args["condition"] == NASTY


def test_a_folder_that_is_no_export_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"ochat.json: cannot be read"):
        add_results(tmp_path, eval_results())
