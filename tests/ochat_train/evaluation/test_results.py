"""Results as JSON: literal lines of a run folder are read and written back unchanged, keys in the same order."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ochat_train.ablation.results import AblationResults, ArmScore
from ochat_train.evaluation.condition_matrix import condition_matrix
from ochat_train.evaluation.results import Evaluation, Sample, Validation, ValidationResult
from ochat_train.evaluation.verdict import Learnt
from ochat_train.report.tables import learnt_text
from ochat_train.report.text import validation_text
from ochat_train.runs.lines import results_of
from ochat_train.runs.metrics import StepMetrics
from tests.support.processes import ROOT

METRICS = (
    '{"step": 6, "epoch": 0, "loss": 5.25, "accuracy": 0.342, "tokens": 7858, "supervised_tokens": 810, '
    '"effective_tokens": 210.5, "weight": 207.9, "classes": {"expert": {"loss": 5.3, "accuracy": 0.33, "tokens": 1700, '
    '"supervised_tokens": 141, "weight_share": 0.678, "effective_tokens": 141.0}, "suboptimal": {"loss": null, '
    '"accuracy": null, "tokens": 6158, "supervised_tokens": 669, "weight_share": 0.321, "effective_tokens": 669.0}}, '
    '"learning_rate": 0.0003, "grad_norm": 2.5, "nonfinite_steps": 0, "tokens_per_second": 12345.6, "mfu": null, '
    '"memory_gib": null, "data_wait_ratio": 0.001}'
)
EVALUATION = (
    '"loss": 5.2, "classes": {"expert": {"loss": 5.3, "nll": 5.31, "accuracy": 0.33, "conversations": 20, '
    '"supervised_tokens": 100}, "unseen": {"loss": null, "nll": null, "accuracy": null, "conversations": 0, '
    '"supervised_tokens": 0}}, "conditions": ["GPT4 Correct", "GPT3"], "matrix": {"expert": [5.31, 5.33]}, '
    '"learnt": {"expert": {"condition": "GPT4 Correct", "nearest": "GPT3", "margin": 0.02, "low": -0.01, "high": 0.05, '
    '"learnt": false, "conversations": 20, "smallest": 0.02, "verdict": "no"}}'
)
OLD_EVALUATION = EVALUATION.replace(', "smallest": 0.02, "verdict": "no"', "")  # before margins had a smallest effect
VALIDATION = f'{{"step": 3, {EVALUATION}, "seconds": 1.25}}'
SAMPLE = (
    '{"step": 3, "prompt": "Is 4 even?", "answers": [{"condition": "GPT4 Correct", "text": "even", "finished": true}, '
    '{"condition": "GPT3", "text": "", "finished": false}]}'
)
SCORE = f'{{"step": 3, {EVALUATION}, "accuracy": {{"GPT3": {{"sums": 0.5, "all": 0.25}}}}}}'
BENCHMARK_SCORE = f'{SCORE[:-1]}, "benchmarks": {{"held-out": {{"GPT3": 0.25}}}}}}'
RESULTS = (
    '{"recipe": "small", "steps": 3, "seeds": 2, "reference": "c-rlft", "inference_class": "expert", '
    '"inference_condition": "GPT4 Correct", "arms": {"sft": {"title": "plain SFT", "conversations": 60, "epochs": 1.5, '
    f'"scores": {{"0": {SCORE}, "1": {BENCHMARK_SCORE}}}}}}}}}'
)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (StepMetrics, METRICS),
        (Validation, VALIDATION),
        (Sample, SAMPLE),
        (ArmScore, SCORE),
        (ArmScore, BENCHMARK_SCORE),
        (AblationResults, RESULTS),
    ],
)
def test_a_line_is_read_and_written_back(kind: type, text: str) -> None:
    assert json.dumps(kind.from_json(json.loads(text)).to_json()) == text


def test_figures_are_those_of_the_line() -> None:
    metrics = StepMetrics.from_json(json.loads(METRICS))
    assert (metrics.step, metrics.means.loss, metrics.means.weight, metrics.speed.mfu) == (6, 5.25, 207.9, None)
    assert metrics.means.classes["expert"].weight_share == 0.678
    validation = Validation.from_json(json.loads(VALIDATION))
    assert (validation.step, validation.seconds, validation.evaluation.loss) == (3, 1.25, 5.2)
    assert validation.evaluation.classes["expert"].nll == 5.31
    assert validation.evaluation.matrix.nll["expert"] == [5.31, 5.33]
    assert validation.evaluation.matrix.learnt["expert"].nearest == "GPT3"
    results = AblationResults.from_json(json.loads(RESULTS))
    assert list(results.arms["sft"].scores) == [0, 1]
    assert results.arms["sft"].scores[1].accuracy["GPT3"]["all"] == 0.25


def test_published_scores_are_read_and_written_back_with_verdicts() -> None:
    """They were written when every margin above 0 was `learnt`; the verdict is added, and nothing else changes."""
    paths = sorted((ROOT / "recipes" / "ablation" / "results").rglob("score.json"))
    assert len(paths) == 30
    for path in paths:
        document = json.loads(path.read_text(encoding="utf-8"))
        written = ArmScore.from_json(document).to_json()
        for name, entry in written["learnt"].items():
            assert entry["learnt"] == (entry.pop("verdict") == "yes")
            counts = document["classes"][name]
            assert entry.pop("smallest") == max(0.005, 0.1 * counts["conversations"] / counts["supervised_tokens"])
            document["learnt"][name]["learnt"] = entry["learnt"]
        assert written == document


def published(arm: str) -> list[Learnt]:
    """The margins of an arm of the published ablation, all seeds and classes."""
    paths = (ROOT / "recipes" / "ablation" / "results" / arm).glob("seed-*/score.json")
    scores = [ArmScore.from_json(json.loads(path.read_text(encoding="utf-8"))) for path in paths]
    return [entry for score in scores for entry in score.evaluation.matrix.learnt.values()]


def test_the_smallest_effect_lies_between_models_that_learnt_and_models_that_did_not() -> None:
    """3,000 experts: with conditions the model's answers differ (69 % and 16 % right); the other arms never saw the
    second condition. The control: an interval above 0 alone would say that one of these had learnt it.
    """
    for arm in ("c-rlft", "condition-only"):
        assert [entry.verdict for entry in published(f"3000-experts/{arm}")] == ["yes"] * 6
    strangers = [
        entry
        for arm in (
            "3000-experts/sft",
            "3000-experts/weights-only",
            "3000-experts/expert-only",
            "3000-experts/suboptimal-only",
            "600-experts/weights-only",
            "600-experts/expert-only",
        )
        for entry in published(arm)
    ]
    assert len(strangers) == 36
    assert not [entry for entry in strangers if entry.verdict == "yes"]
    assert [entry for entry in strangers if entry.low is not None and entry.low > 0]


def test_a_line_without_a_verdict_gets_one() -> None:
    assert OLD_EVALUATION != EVALUATION
    found = Evaluation.from_json(json.loads(f"{{{OLD_EVALUATION}}}")).matrix.learnt["expert"]
    assert (found.verdict, found.smallest) == ("no", 0.1 / 5)  # 100 tokens in 20 conversations


def test_lines_of_another_version_are_left_out_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "validation.jsonl"
    path.write_text(f'{{"step": 1}}\n{VALIDATION}\n{{"step": 5, "classes": 7, "loss": 1.0}}\n')
    assert [validation.step for validation in results_of(path, Validation.from_json)] == [3]
    notice = f"{path}: left out 2 line(s) that lack values this version reads, of steps 1, 5\n"
    assert capsys.readouterr().err == notice


def test_a_model_that_computes_nan_is_validated_and_shown() -> None:
    """Its figures are null in the file and dashes for people."""
    nll = np.array([[np.nan, 2.0], [1.0, np.inf]])
    matrix = condition_matrix(
        nll,
        np.array([4, 4]),
        np.array([0, 0]),
        class_names=["expert"],
        class_conditions=["A"],
        conditions=["A", "B"],
        seed=0,
    )
    evaluation = Evaluation(loss=None, classes={}, matrix=matrix)
    validation = Validation(step=1, evaluation=evaluation, seconds=0.5)
    text = json.dumps(validation.to_json(), allow_nan=False)
    assert Validation.from_json(json.loads(text)) == validation
    assert learnt_text(matrix.learnt["expert"]) == "no: - [-, -] nats/token over B (only 2 held-out conversations)"
    assert "loss -" in validation_text(ValidationResult(validation=validation, samples=[]))
