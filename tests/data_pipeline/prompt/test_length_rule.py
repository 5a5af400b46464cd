"""The length rule on conversations small enough to count by hand."""

from __future__ import annotations

import numpy as np
import pytest

from data_pipeline.conversation import TokenizedConversation
from data_pipeline.prompt.length_rule import LengthRule


@pytest.mark.parametrize(
    ("weights", "limit", "num_tail", "left", "num_supervised", "whole_length", "is_truncated", "num_trimmed"),
    [
        ([0, 1, 1], 3, 0, 3, 2, 3, False, 0),
        ([0, 1, 1], 2, 0, 2, 1, 3, True, 0),
        ([0, 1, 0], 3, 0, 2, 1, 3, False, 1),
        ([0, 1, 0], 2, 0, 2, 1, 3, True, 0),
        ([0, 1, 0], 2, 1, 2, 1, 2, False, 0),  # what the template writes after the last turn does not count
        ([0, 1, 0, 0], 3, 1, 2, 1, 3, False, 1),
        ([0, 0, 0, 1], 3, 0, 0, 0, 4, True, 3),
        ([0, 1, 0, 1], 3, 0, 2, 1, 4, True, 1),
    ],
)
def test_what_is_left(
    weights: list[int],
    limit: int,
    num_tail: int,
    left: int,
    num_supervised: int,
    whole_length: int,
    is_truncated: bool,
    num_trimmed: int,
) -> None:
    ids = np.arange(len(weights), dtype=np.int32)
    tokens = TokenizedConversation(input_ids=ids, loss_weights=np.array(weights, dtype=np.float32))
    cut = LengthRule(max_length_tokens=limit, num_tail_tokens=num_tail).cut(tokens)
    assert cut.tokens.input_ids.tolist() == list(range(left))
    assert cut.tokens.loss_weights.tolist() == weights[:left]
    found = (cut.num_supervised, cut.whole_length, cut.is_truncated, cut.num_trimmed)
    assert found == (num_supervised, whole_length, is_truncated, num_trimmed)
