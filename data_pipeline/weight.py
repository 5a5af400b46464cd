"""The weight of a conversation by its reward: w = exp((r - r_max) / beta) (C-RLFT, arXiv 2309.11235).

The weight of a token is made in three files: here; in `classes/tagging.py`, which gives each message the weight of its
class (or of its own reward), times the row's factor for that message; and in `prompt/render.py`, which puts it on
the message's content and its end of turn. All other tokens weigh 0.
"""

from __future__ import annotations

import math

LARGEST_WEIGHT = 1_000_000  # of a message or a class; also the limit of rewards, on both sides of 0
SMALLEST_WEIGHT = 1e-30  # far above float32's smallest number, far below any weight that matters


def reward_weight(reward: float, *, largest: float, beta: float) -> float:
    """w for a reward r; largest: r_max. Never above 1; only differences between rewards count."""
    return math.exp((reward - largest) / beta)
