"""Was each class's condition learnt? Mean nll of every class's answers under every condition, with intervals.

Plain arithmetic on the scores of conversations (`evaluate.py` makes them).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ochat_train.evaluation.verdict import Learnt, smallest_effect, verdict_of
from ochat_train.system.json_values import finite_or_none

RESAMPLES = 1000
CONFIDENCE = 0.95


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
            "learnt": {name: entry.to_json() for name, entry in self.learnt.items()},
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> ConditionMatrix:
        """From `to_json`, which may also hold other keys. Raises KeyError where one is missing.

        `classes` of a line of validation.jsonl is read for lines without a verdict.
        """
        tokens = {
            name: row["supervised_tokens"] / row["conversations"]
            for name, row in values.get("classes", {}).items()
            if row["conversations"]
        }
        learnt = {
            name: Learnt.from_json(entry, tokens_per_conversation=tokens.get(name))
            for name, entry in values["learnt"].items()
        }
        return cls(conditions=values["conditions"], nll=values["matrix"], learnt=learnt)

    def without_verdicts(self) -> ConditionMatrix:
        """The matrix of a model that was trained with one condition: the others are new to it, so it learnt none."""
        return replace(self, learnt={name: replace(entry, verdict=None) for name, entry in self.learnt.items()})


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
        learnt[name] = _learnt(
            margins[nearest],
            (low, high),
            own=conditions[own],
            nearest=conditions[nearest],
            tokens_per_conversation=float(tokens.mean()),
            conversations=int(mask.sum()),
        )
    return ConditionMatrix(conditions=conditions, nll=rows, learnt=learnt)


def _learnt(
    margin: float,
    interval: tuple[float, float],
    *,
    own: str,
    nearest: str,
    tokens_per_conversation: float,
    conversations: int,
) -> Learnt:
    known, low, high = (finite_or_none(float(value)) for value in (margin, *interval))
    smallest = smallest_effect(tokens_per_conversation)
    return Learnt(
        condition=own,
        nearest=nearest,
        margin=known,
        low=low,
        high=high,
        smallest=smallest,
        verdict=verdict_of(known, low, high, smallest=smallest, conversations=conversations),
        conversations=conversations,
    )


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
    drawn = rng.multinomial(count, np.full(count, 1.0 / count), size=RESAMPLES).astype(np.float64)
    resampled = (drawn @ differences) / (drawn @ tokens)[:, None]
    smallest = np.delete(resampled, own, axis=1).min(axis=1)
    low, high = np.quantile(smallest, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return margins, float(low), float(high)
