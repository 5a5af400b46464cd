"""Two results: what is refused, what is said, and what counts as no success."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.errors import UserError
from ochat_train.cli.eval import _require_answers, _results_against
from ochat_train.cli.main import main
from ochat_train.suites.compare import compare, comparison_text
from ochat_train.suites.results import EvalResults, EvalSettings, ModelFacts
from ochat_train.suites.scores import suite_scores
from ochat_train.suites.suite import SuiteOptions
from ochat_train.suites.table import make_suites
from ochat_train.system.exits import UnansweredError
from tests.support.eval_results import CONDITIONS, eval_results, question, suite_facts
from tests.support.rows import write_jsonl


def test_the_same_results_differ_by_nothing_and_need_no_note() -> None:
    found = compare(eval_results(), eval_results())
    assert found.notes == ()
    assert [(each.row.difference.mean, each.won, each.lost) for each in found.differences if each.row.difference] == [
        (0.0, (), ())
    ] * 4


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"rule": "another one"}, r"scored otherwise in arithmetic \(rule\)"),
        ({"facts": {"judge": "another"}}, r"scored otherwise in arithmetic \(judge\)"),
        ({"version": 2}, "by another version"),
    ],
)
def test_scores_by_other_rules_are_not_compared(change: dict[str, Any], problem: str) -> None:
    results = eval_results()
    other = replace(results, suites=(suite_facts("arithmetic", **change), results.suites[1]))
    with pytest.raises(UserError, match=problem):
        compare(other, results)


def test_says_what_was_asked_differently_and_what_was_left_out() -> None:
    results = eval_results()
    other = replace(
        results,
        model=ModelFacts(name="made-up", kind="export", sha256="3" * 64),
        settings=EvalSettings(few_shot=5),
        engine="vllm",
        engine_versions={"transformers": "4", "vllm": "0.26"},
        conditions=CONDITIONS[:1],
        suites=(suite_facts("arithmetic", max_new_tokens=9),),
        questions=tuple(each for each in results.questions if each.condition == CONDITIONS[0]),
    )
    found = compare(other, results)
    assert (found.this, found.other) == ("made-up (22222222)", "made-up (33333333)"), "one name for two models"
    assert found.notes == (
        "asked differently: few_shot 0 and 5",
        "asked differently: engine transformers and vllm",
        "asked differently: transformers 5 and 4",
        "asked differently: max_new_tokens of arithmetic 64 and 9",
        "not compared, because only made-up has it: GPT3, talk",
    )
    assert all(note in comparison_text(found, {}) for note in found.notes)


def options(**values: Any) -> argparse.Namespace:
    return argparse.Namespace(**{"against": None, "allow_failed": 0, **values})


def test_what_to_compare_with_is_looked_for_before_anything_is_asked(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert _results_against(options()) is None
    assert _results_against(options(against="http://127.0.0.1:1/v1")) is None
    command = ["eval", str(tmp_path / "no model"), "--suite", "held-out", "--data", "x", "--against", str(tmp_path)]
    assert main(command) == 2
    assert "holds neither results of `ochat eval` nor a model" in capfd.readouterr().err


def results_with(**change: Any) -> EvalResults:
    """Half of the questions under the second condition are like `change`; the others were scored."""
    asked = [question(n, condition, 1.0) for condition in CONDITIONS for n in range(4)]
    asked[6:] = [replace(each, value=None, texts=(), **change) for each in asked[6:]]
    return eval_results(questions=tuple(asked), scores=tuple(suite_scores(asked, seed=0)))


def test_a_suite_without_any_score_is_no_success() -> None:
    """However many failures are allowed, and though what is too long did not fail."""
    _require_answers(results_with(status="too_long"), options())
    _require_answers(results_with(status="failed", reason="HTTP 500"), options(allow_failed=2))
    with pytest.raises(UnansweredError, match=r"2 questions have no answer.* \(2 x HTTP 500\)"):
        _require_answers(results_with(status="failed", reason="HTTP 500"), options())
    for status in ("too_long", "failed"):
        asked = [replace(each, status=status, value=None, texts=()) for each in results_with().questions]
        nothing = eval_results(questions=tuple(asked), scores=tuple(suite_scores(asked, seed=0)))
        with pytest.raises(UnansweredError, match="arithmetic has no score under GPT4 Correct: of 4 questions"):
            _require_answers(nothing, options(allow_failed=100))


@pytest.mark.parametrize("suite", ["held-out", "gsm8k", "math", "agieval", "humaneval"])
def test_a_file_without_questions_is_named(suite: str, tmp_path: Path) -> None:
    (tmp_path / "agieval").mkdir()
    file = tmp_path / "agieval" / "part.jsonl"
    file.write_text("\n")
    data = file.parent if suite == "agieval" else file
    with pytest.raises(UserError, match=str(data)) as caught:
        make_suites([suite], [f"{suite}={data}"], SuiteOptions(allow_code_execution=True))
    assert "JSON" not in caught.value.problem
    write_jsonl(file, [{"question": "Q?", "label": "A", "options": ["(A)", "(B)"], "answer": "#### 1"}])
    if suite in ("held-out", "gsm8k", "agieval"):
        assert len(make_suites([suite], [f"{suite}={data}"], SuiteOptions())[0].questions) == 1
