"""The condition matrix and its intervals, against figures worked out by hand and draws from a known distribution."""

from __future__ import annotations

import numpy as np
import pytest

from ochat_train.evaluation.condition_matrix import ConditionMatrix, condition_matrix
from ochat_train.evaluation.verdict import smallest_effect, verdict_of

CONDITIONS = ["GPT4 Correct", "GPT3", ""]


def matrix_of(nll: np.ndarray, tokens: np.ndarray, classes: np.ndarray, **more: object) -> ConditionMatrix:
    arguments: dict[str, object] = {
        "class_names": ["expert", "suboptimal"],
        "class_conditions": CONDITIONS[:2],
        "conditions": CONDITIONS,
        "seed": 0,
    }
    return condition_matrix(nll, tokens, classes, **{**arguments, **more})


def test_means_are_per_token_not_per_conversation() -> None:
    nll = np.array([[2.0, 4.0, 3.0], [30.0, 33.0, 36.0], [5.0, 4.0, 6.0]])
    found = matrix_of(nll, np.array([1, 9, 2]), np.array([0, 0, 1]))
    assert found.nll["expert"] == pytest.approx([32 / 10, 37 / 10, 39 / 10])
    assert found.nll["suboptimal"] == pytest.approx([2.5, 2.0, 3.0])
    expert, suboptimal = found.learnt["expert"], found.learnt["suboptimal"]
    assert (expert.condition, expert.nearest, expert.conversations) == ("GPT4 Correct", "GPT3", 2)
    assert expert.margin == pytest.approx(0.5)
    assert (suboptimal.condition, suboptimal.nearest) == ("GPT3", "GPT4 Correct")
    assert suboptimal.margin == pytest.approx(0.5)


def test_class_whose_answers_are_likelier_under_another_condition_was_not_learnt() -> None:
    nll = np.tile([[3.0, 2.0, 4.0]], (50, 1))
    found = matrix_of(nll, np.ones(50, dtype=int), np.zeros(50, dtype=int)).learnt["expert"]
    assert found.margin == pytest.approx(-1.0)
    assert not found.learnt
    assert list(matrix_of(nll, np.ones(50, dtype=int), np.zeros(50, dtype=int)).learnt) == ["expert"], (
        "the other has no row"
    )


def test_one_condition_gives_no_matrix() -> None:
    found = matrix_of(np.ones((2, 1)), np.ones(2, dtype=int), np.zeros(2, dtype=int), conditions=["GPT3"])
    assert found.nll == {}
    assert found.learnt == {}


@pytest.mark.parametrize(("true_margin", "least", "most"), [(0.0, 0.0, 0.12), (0.2, 0.88, 1.0)])
def test_intervals_hold_the_true_margin_as_often_as_they_say(true_margin: float, least: float, most: float) -> None:
    """200 sets of 150 conversations with noise: a class without a margin has an interval above 0 in about 2.5 % of them
    (at most 12 %), one with a margin of three standard errors nearly always; and 95 % intervals hold the truth in 88 to
    100 %.
    """
    rng = np.random.default_rng(0)
    above = held = 0
    for number in range(200):
        tokens = rng.integers(5, 50, 150)
        own = rng.normal(2.0, 0.5, 150) * tokens
        other = own + (true_margin + rng.normal(0.0, 0.6, 150)) * tokens
        found = matrix_of(
            np.stack((own, other), axis=1), tokens, np.zeros(150, dtype=int), conditions=CONDITIONS[:2], seed=number
        ).learnt["expert"]
        above += found.low > 0
        held += found.low <= true_margin <= found.high
    assert least <= above / 200 <= most
    assert held / 200 >= 0.88


def test_control_drawing_tokens_apart_from_their_conversations_would_be_too_sure() -> None:
    """Conversations of equal tokens: the interval is as wide as conversations differ, not as narrow as 40 times the
    tokens.
    """
    rng = np.random.default_rng(0)
    differences = rng.normal(0.1, 0.5, 100)
    tokens = np.full(100, 40)
    nll = np.stack((np.zeros(100), differences * 40), axis=1)
    found = matrix_of(nll, tokens, np.zeros(100, dtype=int), conditions=CONDITIONS[:2]).learnt["expert"]
    standard_error = 0.5 / np.sqrt(100)
    assert found.high - found.low == pytest.approx(2 * 1.96 * standard_error, rel=0.2)
    assert found.high - found.low > 5 * (2 * 1.96 * standard_error / np.sqrt(40))


@pytest.mark.parametrize(
    ("margin", "low", "high", "tokens", "conversations", "verdict"),
    [
        (0.7156, 0.5033, 0.9759, 4.5, 26, "yes"),  # the quickstart
        (0.0003, 0.0001, 0.0006, 90, 200, "no"),  # 60 steps of GSM8K, while the model answers 2000000...
        (0.0003, 0.0001, 0.0006, 5000, 200, "no"),  # however long the answers are
        (0.0048, 0.0048, 0.0048, 90, 1, "no"),
        (0.7, 0.7, 0.7, 90, 1, "weak"),  # one conversation says little
        (0.7, 0.5, 0.9, 90, 9, "weak"),
        (0.7, 0.5, 0.9, 90, 10, "yes"),
        (0.008, 0.003, 0.013, 90, 200, "weak"),  # not 0, but it may be too small
        (0.008, 0.006, 0.010, 90, 200, "yes"),
        (0.008, 0.006, 0.010, 6, 200, "no"),  # 0.06 nats an answer of six tokens: it stays the same answer
        (0.7, -0.1, 1.4, 90, 12, "no"),
        (-0.7, -0.9, -0.5, 90, 200, "no"),
        (None, None, None, 90, 200, "no"),
    ],
)
def test_verdicts(
    margin: float | None, low: float | None, high: float | None, tokens: float, conversations: int, verdict: str
) -> None:
    smallest = smallest_effect(tokens)
    assert verdict_of(margin, low, high, smallest=smallest, conversations=conversations) == verdict


def test_the_smallest_effect_is_that_of_the_class_s_own_answers() -> None:
    nll = np.array([[0.0, 0.5], [0.0, 0.5]] * 10)
    tokens = np.array([4, 6] * 10)
    found = matrix_of(nll, tokens, np.zeros(20, dtype=int), conditions=CONDITIONS[:2])
    assert found.learnt["expert"].smallest == pytest.approx(0.1 / 5)
    assert found.learnt["expert"].verdict == "yes"
    assert found.without_verdicts().learnt["expert"].verdict is None
    assert found.without_verdicts().nll == found.nll
