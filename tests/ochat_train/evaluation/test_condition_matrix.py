"""The condition matrix and its intervals, against figures worked out by hand and draws from a known distribution."""

from __future__ import annotations

import numpy as np
import pytest

from ochat_train.evaluation.condition_matrix import ConditionMatrix, condition_matrix

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
    """200 sets of 150 conversations with noise: a class without a margin is called learnt in about 2.5 % of them (at
    most 12 %), one with a margin of three standard errors nearly always; and 95 % intervals hold the truth in 88 to 100
    %.
    """
    rng = np.random.default_rng(0)
    learnt = held = 0
    for number in range(200):
        tokens = rng.integers(5, 50, 150)
        own = rng.normal(2.0, 0.5, 150) * tokens
        other = own + (true_margin + rng.normal(0.0, 0.6, 150)) * tokens
        found = matrix_of(
            np.stack((own, other), axis=1), tokens, np.zeros(150, dtype=int), conditions=CONDITIONS[:2], seed=number
        ).learnt["expert"]
        learnt += found.learnt
        held += found.low <= true_margin <= found.high
    assert least <= learnt / 200 <= most
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
