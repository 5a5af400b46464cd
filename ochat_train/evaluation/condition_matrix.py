"""Was each class's condition learnt? Mean nll of every class's answers under every condition, with intervals.

Plain arithmetic on the scores of conversations (`evaluation.py` makes them).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

_RESAMPLES = 1000
_CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class Learnt:
    """Whether a class's own condition makes its answers likelier than any other.

    condition: the class's own. nearest: the other condition under which its answers are likeliest.
    margin: nll under `nearest` minus nll under the own condition, nats per token; low, high: its 95 % interval, from a
    bootstrap over conversations. learnt: the whole interval is above 0.
    """

    condition: str
    nearest: str
    margin: float
    low: float
    high: float
    learnt: bool
    conversations: int


@dataclass(frozen=True, kw_only=True)
class ConditionMatrix:
    """nll[class name][i]: nats per token of a class's answers under conditions[i]; the same conversations in every
    column.

    A class without a held-out conversation has no row, and without a second condition there is no matrix (no rows).
    """

    conditions: Sequence[str]
    nll: dict[str, list[float]]
    learnt: dict[str, Learnt]

    def as_json(self) -> dict[str, Any]:
        """The matrix as it stands in validation.jsonl."""
        learnt = {name: asdict(entry) for name, entry in self.learnt.items()}
        return {"conditions": list(self.conditions), "matrix": self.nll, "learnt": learnt}


def condition_matrix(
    nll: np.ndarray,
    num_tokens: np.ndarray,
    class_ids: np.ndarray,
    *,
    class_names: Sequence[str],
    class_conditions: Sequence[str],
    conditions: Sequence[str],
    seed: int,
) -> ConditionMatrix:
    """The matrix of held-out conversations.

    nll: float64[conversations, conditions], sum over a conversation's supervised tokens, nats. num_tokens:
    int[conversations], supervised tokens. class_ids: int[conversations]. class_conditions: own condition of each class.
    """
    rows: dict[str, list[float]] = {}
    learnt: dict[str, Learnt] = {}
    rng = np.random.default_rng(seed)
    if len(conditions) < 2:
        return ConditionMatrix(conditions=conditions, nll={}, learnt={})
    for class_id, name in enumerate(class_names):
        mask = class_ids == class_id
        if not mask.any():
            continue
        sums, tokens = nll[mask], num_tokens[mask].astype(np.float64)
        rows[name] = (sums.sum(axis=0) / tokens.sum()).tolist()
        own = conditions.index(class_conditions[class_id])
        margins, low, high = _margins(sums, tokens, own, rng)
        nearest = int(np.argmin(np.where(np.arange(len(conditions)) == own, np.inf, margins)))
        learnt[name] = Learnt(
            condition=conditions[own],
            nearest=conditions[nearest],
            margin=float(margins[nearest]),
            low=low,
            high=high,
            learnt=low > 0.0,
            conversations=int(mask.sum()),
        )
    return ConditionMatrix(conditions=conditions, nll=rows, learnt=learnt)


def _margins(
    sums: np.ndarray, tokens: np.ndarray, own: int, rng: np.random.Generator
) -> tuple[np.ndarray, float, float]:
    """Margin over each condition, and the interval of the smallest one over the others.

    Conversations are drawn anew with replacement, whole, because tokens of one conversation are not independent; the
    smallest margin is taken inside every draw.
    """
    differences = sums - sums[:, [own]]
    margins = differences.sum(axis=0) / tokens.sum()
    count = len(tokens)
    drawn = rng.multinomial(count, np.full(count, 1.0 / count), size=_RESAMPLES).astype(np.float64)
    resampled = (drawn @ differences) / (drawn @ tokens)[:, None]
    smallest = np.delete(resampled, own, axis=1).min(axis=1)
    low, high = np.quantile(smallest, [(1 - _CONFIDENCE) / 2, (1 + _CONFIDENCE) / 2])
    return margins, float(low), float(high)
