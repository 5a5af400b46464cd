"""Was each class's condition learnt? Mean nll of every class's answers under every condition, with intervals.

Plain arithmetic on the scores of conversations (`evaluate.py` makes them).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ochat_train.system.json_values import fields_from, finite_or_none

_RESAMPLES = 1000
_CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class Learnt:
    """Whether a class's own condition makes its answers likelier than any other.

    condition: the class's own. nearest: the other condition under which its answers are likeliest.
    margin: nll under `nearest` minus nll under the own condition, nats per token; low, high: its 95 % interval, from a
    bootstrap over conversations; None where they are not finite. learnt: the whole interval is above 0.
    """

    condition: str
    nearest: str
    margin: float | None
    low: float | None
    high: float | None
    learnt: bool
    conversations: int


@dataclass(frozen=True, kw_only=True)
class ConditionMatrix:
    """nll[class name][i]: nats per token of a class's answers under conditions[i], None where it is not finite.

    Every column holds the same conversations. A class without a held-out conversation has no row, and without a second
    condition there is no matrix (no rows).
    """

    conditions: Sequence[str]
    nll: Mapping[str, Sequence[float | None]]
    learnt: Mapping[str, Learnt]

    def to_json(self) -> dict[str, Any]:
        """The keys of the matrix in a line of validation.jsonl."""
        return {
            "conditions": list(self.conditions),
            "matrix": {name: list(row) for name, row in self.nll.items()},
            "learnt": {name: asdict(entry) for name, entry in self.learnt.items()},
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> ConditionMatrix:
        """From `to_json`, which may also hold other keys. Raises KeyError where one is missing."""
        learnt = {name: Learnt(**fields_from(Learnt, entry)) for name, entry in values["learnt"].items()}
        return cls(conditions=values["conditions"], nll=values["matrix"], learnt=learnt)


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
    rows: dict[str, list[float | None]] = {}
    learnt: dict[str, Learnt] = {}
    rng = np.random.default_rng(seed)
    if len(conditions) < 2:
        return ConditionMatrix(conditions=conditions, nll={}, learnt={})
    for class_id, name in enumerate(class_names):
        mask = class_ids == class_id
        if not mask.any():
            continue
        sums, tokens = nll[mask], num_tokens[mask].astype(np.float64)
        rows[name] = [finite_or_none(value) for value in (sums.sum(axis=0) / tokens.sum()).tolist()]
        own = conditions.index(class_conditions[class_id])
        margins, low, high = _margins(sums, tokens, own, rng)
        nearest = int(np.argmin(np.where(np.arange(len(conditions)) == own, np.inf, margins)))
        learnt[name] = Learnt(
            condition=conditions[own],
            nearest=conditions[nearest],
            margin=finite_or_none(float(margins[nearest])),
            low=finite_or_none(low),
            high=finite_or_none(high),
            learnt=low > 0.0,
            conversations=int(mask.sum()),
        )
    return ConditionMatrix(conditions=conditions, nll=rows, learnt=learnt)


def _margins(
    sums: np.ndarray, tokens: np.ndarray, own: int, rng: np.random.Generator
) -> tuple[np.ndarray, float, float]:
    """Margin over each condition, and the interval of the smallest one over the others.

    Whole conversations are resampled with replacement, because the tokens of one are not independent. Each resample
    takes its own smallest margin.
    """
    differences = sums - sums[:, [own]]
    margins = differences.sum(axis=0) / tokens.sum()
    count = len(tokens)
    drawn = rng.multinomial(count, np.full(count, 1.0 / count), size=_RESAMPLES).astype(np.float64)
    resampled = (drawn @ differences) / (drawn @ tokens)[:, None]
    smallest = np.delete(resampled, own, axis=1).min(axis=1)
    low, high = np.quantile(smallest, [(1 - _CONFIDENCE) / 2, (1 + _CONFIDENCE) / 2])
    return margins, float(low), float(high)
