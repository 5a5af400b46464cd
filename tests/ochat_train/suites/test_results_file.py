"""results.json: written small, read back the same, and read where the last version wrote it."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.errors import UserError
from ochat_train.suites.results import EvalResults
from ochat_train.suites.results_file import read_results, write_results
from tests.support.eval_results import CONDITIONS, eval_results, question

EXAMPLES = "Q: 1 + 1?\nA: 2\n\n" * 100


def with_examples() -> EvalResults:
    """Questions of two tasks, of which one begins with its worked examples; one was asked in two turns, one failed."""
    asked = [
        question(n, condition, float(n % 2), turns=(f"{EXAMPLES}Q: {n} + {n}?" if n % 3 else f"Say {n}.",))
        for condition in CONDITIONS
        for n in range(9)
    ]
    asked[4] = replace(asked[4], turns=(*asked[4].turns, "Why?"), texts=("8", "Because."))
    asked[13] = replace(asked[13], turns=asked[4].turns, status="failed", value=None, texts=(), reason="HTTP 500")
    return eval_results(questions=tuple(asked))


@pytest.mark.parametrize("results", [with_examples(), eval_results(), eval_results(questions=())])
def test_reads_back_as_it_was(results: EvalResults, tmp_path: Path) -> None:
    write_results(tmp_path, results)
    assert read_results(tmp_path) == results
    assert read_results(tmp_path / "results.json") == results


def test_each_question_is_there_once_and_examples_once_for_a_task(tmp_path: Path) -> None:
    path = write_results(tmp_path, with_examples())
    document = json.loads(path.read_text(encoding="utf-8"))
    assert [row["id"] for row in document["questions"]] == [f"task {n % 3}/{n}" for n in range(9)]
    assert [document["questions"][row["question"]]["id"] for row in document["answers"]] == [
        f"task {n % 3}/{n}" for _ in CONDITIONS for n in range(9)
    ]
    assert [begin[: len(EXAMPLES)] for begin in document["begins"]] == [EXAMPLES, EXAMPLES], "one for each task"
    first, shortened = document["questions"][:2]
    assert first["turns"] == ["Say 0."]
    assert "begin" not in first
    assert document["begins"][shortened["begin"]] + shortened["turns"][0] == f"{EXAMPLES}Q: 1 + 1?"
    assert path.read_text(encoding="utf-8").count(EXAMPLES) == 0, "newlines are escaped"
    assert path.read_text(encoding="utf-8").count(json.dumps(EXAMPLES)[1:-1]) == 2


def test_version_1_can_still_be_read(tmp_path: Path) -> None:
    """It held whole questions for each answer, and `seconds`."""
    results = with_examples()
    document = {**asdict(results), "format": 1}
    for row in document["questions"]:
        row["seconds"] = 1.0
    path = tmp_path / "results.json"
    path.write_text(json.dumps(document, indent=1), encoding="utf-8")
    assert read_results(path) == results
    del document["questions"][3]["prompt_sha256"]
    path.write_text(json.dumps(document, indent=1), encoding="utf-8")
    with pytest.raises(UserError, match="is damaged"):
        read_results(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 99}, r"no results\.json of this version"),
        ({"status": "won"}, "is damaged"),
        ({"question": 9}, "an answer to question 9, and there are 9 questions"),
        ({"question": -1}, "an answer to question -1"),
        ({"begin": 2}, "begins with text 2, and there are 2 texts"),
        ({"questions": None}, "is damaged"),
        ({"answers": "none"}, "is damaged"),
    ],
)
def test_damaged_documents_are_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = write_results(tmp_path, with_examples())
    document = json.loads(path.read_text(encoding="utf-8"))
    [(key, value)] = change.items()
    row = document["answers"][0] if key in document["answers"][0] else document["questions"][1]
    (row if key in row else document)[key] = value
    path.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(UserError, match=message):
        read_results(path)
