"""Results of `ochat eval`, made up."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ochat_train.suites.intervals import mean_estimate
from ochat_train.suites.lm_eval import HarnessScore
from ochat_train.suites.results import (
    EvalResults,
    EvalSettings,
    ModelFacts,
    QuestionResult,
    SeenScores,
    SuiteFacts,
)
from ochat_train.suites.scores import paired_differences, suite_scores

CONDITIONS = ("GPT4 Correct", "GPT3")
NASTY = '<script>document.title = "taken"</script><img src=x onerror=alert(1)>|`x`| **b** \u202e\n</pre> &amp;'


def question(number: int, condition: str, value: float, *, suite: str = "arithmetic", **more: Any) -> QuestionResult:
    return replace(
        QuestionResult(
            suite=suite,
            id=f"task {number % 3}/{number}",
            task=f"task {number % 3}",
            condition=condition,
            status="scored",
            prompt_sha256="0" * 64,
            turns=(f"Question {number}?",),
            right=(f"right {number}",),
            texts=(f"answer {number} under {condition}",),
            value=value,
            is_answered=True,
            num_tokens=3,
            finish="stop",
            started=0.0,
            ended=1.0,
        ),
        **more,
    )


def suite_facts(name: str, **more: Any) -> SuiteFacts:
    facts = SuiteFacts(
        name=name,
        title=f"The {name} suite",
        version=1,
        metric="accuracy",
        rule="the answer is the right one",
        other_rules={},
        max_new_tokens=64,
        highest=1.0,
        num_questions=12,
        num_asked=12,
        left_out={},
        files=(),
        facts={},
    )
    return replace(facts, **more)


def eval_results(*, weights_sha256: str | None = "1" * 64, **more: Any) -> EvalResults:
    """Two suites under two conditions: 9 and 3 of 12 right, and points of a judge; a task of the harness."""
    asked = [question(i, condition, float(i < 9 - 6 * j)) for j, condition in enumerate(CONDITIONS) for i in range(12)]
    judged = [
        question(i, condition, 5.0 + i % 3 - j, suite="talk")
        for j, condition in enumerate(CONDITIONS)
        for i in range(12)
    ]
    seen = SeenScores(
        suite="arithmetic",
        condition=CONDITIONS[0],
        num_questions=12,
        num_seen=2,
        num_unchecked=1,
        score_seen=mean_estimate([1.0, 1.0], seed=0),
        score_unseen=mean_estimate([1.0] * 7 + [0.0] * 3, seed=0),
        seen={"task 0/0": "c1", "task 1/1": "c2"},
        fingerprint="f" * 64,
        num_conversations=1234,
    )
    harness = HarnessScore(
        task="tiny",
        task_version="2",
        condition=CONDITIONS[1],
        metric="exact_match",
        filter="strict",
        value=0.25,
        standard_error=0.0123,
        num_questions=40,
        few_shot=0,
        is_higher_better=True,
    )
    results = EvalResults(
        created="2026-01-02T03:04:05+00:00",
        model=ModelFacts(name="made-up", kind="export", sha256="2" * 64, weights_sha256=weights_sha256),
        engine="transformers",
        engine_versions={"transformers": "5"},
        versions={"ochat-train": "1"},
        settings=EvalSettings(),
        conditions=CONDITIONS,
        suites=(suite_facts("arithmetic"), suite_facts("talk", metric="points", highest=10.0)),
        scores=(*suite_scores(asked, seed=0), *suite_scores(judged, seed=0, highest=10.0)),
        paired=(*paired_differences(asked, seed=0), *paired_differences(judged, seed=0, highest=10.0)),
        failed_tries={"status 503": 2},
        questions=(*asked, *judged),
        contamination=(seen,),
        harness=(harness,),
        harness_versions={"lm_eval": "0.4.13"},
    )
    return replace(results, **more)
