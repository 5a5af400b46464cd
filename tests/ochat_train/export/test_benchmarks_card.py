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
from ochat_train.suites.intervals import mean_estimate
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


def entries_of(folder: Path) -> list[Any]:
    """The figures of a card as the Hub's own library reads them."""
    return list(ModelCard.load(folder / "README.md").data.eval_results)


def figures_of(folder: Path) -> list[tuple[Any, ...]]:
    return [
        (e.dataset_type, e.dataset_name, e.metric_type, e.metric_name, e.metric_args.get("condition"), e.metric_value)
        for e in entries_of(folder)
    ]


def test_the_hub_reads_every_figure_with_its_condition(export_dir: Path) -> None:
    """Several suites and rules, conditions that YAML could misread, a harness's task called like a suite of ours."""
    names = ("yes: \"no\" 'x' #1", "数学 — Ü\n\u202e")
    results = results_of(export_dir)
    renamed = dict(zip(CONDITIONS, names, strict=True))
    strict = mean_estimate([1.0, 0.0], seed=0)
    scores = [replace(row, condition=renamed[row.condition]) for row in results.scores if row.task is None]
    scores[0] = replace(scores[0], others={"strict": strict})
    tiny = replace(results.harness[0], task="arithmetic", condition=names[1])
    harness = (tiny, replace(tiny, metric="acc", filter="none", value=0.5), replace(tiny, condition=None, value=1e-6))
    add_results(export_dir, replace(results, scores=tuple(scores), harness=harness, contamination=()))
    shown = ('condition "yes: \\"no\\" \'x\' #1"', r'condition "数学 — Ü\n\u202e"')
    ours, talk, theirs = "The arithmetic suite", "The talk suite", "arithmetic (lm-evaluation-harness)"
    assert figures_of(export_dir) == [
        ("arithmetic", ours, "accuracy", f"accuracy, {shown[0]}", names[0], 0.75),
        ("arithmetic", ours, "accuracy", f"accuracy, strict, {shown[0]}", names[0], 0.5),
        ("arithmetic", ours, "accuracy", f"accuracy, {shown[1]}", names[1], 0.25),
        ("talk", talk, "points", f"points, {shown[0]}", names[0], 6.0),
        ("talk", talk, "points", f"points, {shown[1]}", names[1], 5.0),
        ("arithmetic", theirs, "exact_match", f"exact_match, strict, {shown[1]}", names[1], 0.25),
        ("arithmetic", theirs, "acc", f"acc, none, {shown[1]}", names[1], 0.5),
        ("arithmetic", theirs, "exact_match", "exact_match, strict, the default condition", None, 1e-6),
    ]
    assert rows_of((export_dir / "README.md").read_text())[1][4] == "strict 50.0%"


def test_what_the_figures_say_beside_their_values(export_dir: Path) -> None:
    add_results(export_dir, results_of(export_dir))
    data = ModelCard.load(export_dir / "README.md").data
    first = data.eval_results[0]
    assert (first.task_type, first.dataset_config) == ("text-generation", "ochat eval")
    assert first.metric_args["questions_seen_in_training"] == 2
    assert first.metric_args["questions"] == 12
    assert data.model_name == "small"
    assert data["license"] == "mit"
    index = data.to_dict()["model-index"]
    assert [len(entry["metrics"]) for entry in index[0]["results"]] == [2, 2, 1]


OWN = """- task: {type: text-generation}
    dataset: {type: arithmetic, name: Mine, args: {shots: 5}}
    metrics: [{type: accuracy, value: 0.1}]
"""


def test_figures_of_a_person_stay_what_they_were(export_dir: Path) -> None:
    card = CARD.replace("license: mit", f"license: mit\nmodel-index:\n- name: small\n  results:\n  {OWN}".rstrip())
    (export_dir / "README.md").write_text(card)
    add_results(export_dir, results_of(export_dir))
    mine = entries_of(export_dir)[0]
    assert (mine.dataset_name, mine.dataset_args, mine.metric_value) == ("Mine", {"shots": 5}, 0.1)
    assert len(entries_of(export_dir)) == 6


@pytest.mark.parametrize(
    ("index", "problem"),
    [
        (f"- name: small\n  results:\n  {OWN}- name: other\n  results:\n  {OWN}", "figures of several models"),
        (f"- name: small\n  results:\n  {OWN}  {OWN.replace('Mine', 'Theirs')}", "reads back as something else"),
    ],
)
def test_a_card_whose_figures_would_change_is_refused(index: str, problem: str, export_dir: Path) -> None:
    card = CARD.replace("license: mit", f"license: mit\nmodel-index:\n{index.rstrip()}")
    (export_dir / "README.md").write_text(card)
    with pytest.raises(UserError, match=problem):
        add_results(export_dir, results_of(export_dir))
    assert (export_dir / "README.md").read_text() == card


@pytest.mark.parametrize(
    "card",
    [
        CARD.replace("\n", "\r\n"),
        "\n" + CARD,
        "\ufeff" + CARD,
        CARD.replace("license: mit", "license: mit\nabout: a ---\n"),
        CARD.split("---\n", 2)[2],
    ],
)
def test_a_card_has_its_metadata_once_however_it_was_saved(card: str, export_dir: Path) -> None:
    (export_dir / "README.md").write_bytes(card.encode())
    for _ in range(2):
        add_results(export_dir, results_of(export_dir))
    saved = (export_dir / "README.md").read_bytes().decode()
    assert saved.count("license: mit") == card.count("license: mit")
    assert saved.count("model-index:") == 1
    assert saved.count("## Benchmarks") == 1
    assert ("\n" in saved.replace("\r\n", "")) == ("\r\n" not in card)
    assert len(entries_of(export_dir)) == 5
    assert "Text --- and more." in saved


def test_the_table_has_the_same_figures_before_the_training_data(export_dir: Path) -> None:
    add_results(export_dir, results_of(export_dir))
    card = (export_dir / "README.md").read_text()
    rows = rows_of(card)
    assert rows[1][:3] == ["The arithmetic suite", '"GPT4 Correct"', "75.0%"]
    assert rows[1][4:] == ["-", "100.0%", "12 of 12", "2"]
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
    assert len(rows_of(card)[1]) == 8
    [entry] = ModelCard(card).data.eval_results
    assert entry.metric_args["condition"] == NASTY


def test_a_folder_that_is_no_export_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"ochat.json: cannot be read"):
        add_results(tmp_path, eval_results())
