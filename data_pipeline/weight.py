"""The weight of a conversation by its reward: w = exp((r - r_max) / beta) (C-RLFT, arXiv 2309.11235).

The weight of a token is made in these files, each of which does one thing:

    weight.py                the formula; called by `settings/data.py` for a class, by `classes/rewards.py` for a row
    classes/tagging.py       weight of a message: that of its class or reward, times the row's own factor for it; 0 for
                             all that the assistant did not write
    prompt/part_weights.py   weight of a part of a message: the message's, times the factor of reasoning, answer or tool
                             calls, times that of a stretch of the text; the end of turn counts as the last part
    prompt/render.py         weight of a segment: that of its part; role prefixes and everything else 0
    prompt/tokenization.py   weight of a token: that of its segment; 0 for one that spans prefix and content; of a token
                             of two stretches that of the one in which it ends

Rows of OpenChat bring their weights along: `openchat` rows without a class in `tagging.py`, tokenized rows in
`prompt/turns.py`, which checks them.
"""

from __future__ import annotations

import math

LARGEST_WEIGHT = 1_000_000  # of a message or a class; also the limit of rewards, on both sides of 0
SMALLEST_WEIGHT = 1e-30  # far above float32's smallest number, far below any weight that matters


def reward_weight(reward: float, *, largest: float, beta: float) -> float:
    """w for a reward r; largest: r_max. Never above 1; only differences between rewards count."""
    return math.exp((reward - largest) / beta)
