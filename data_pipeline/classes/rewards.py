"""Rewards of single conversations: from a number in each row to a loss weight, or to a class.

The reward r that weight.py turns into a weight is the row's, clipped to `data.reward_clip`, minus the baseline of its
class; r_max is the largest such r of all conversations and of the classes that have their own reward.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from data_pipeline.errors import UserError
from data_pipeline.settings.classes import quantile_class
from data_pipeline.settings.data import DataSettings, class_specs
from data_pipeline.weight import SMALLEST_WEIGHT, reward_weight


@dataclass(frozen=True, kw_only=True)
class RewardFacts:
    """What must be known of all rows before the first one gets a weight or a class.

    largest: r_max; None where no row has a reward. baselines: class -> number that is subtracted from its rewards.
    edges: ascending scores between the quantile classes; a score equal to an edge belongs to the class above.
    """

    largest: float | None = None
    baselines: Mapping[str, float]
    edges: Sequence[float] = ()

    def weight(self, reward: float, *, class_name: str, data: DataSettings) -> float:
        """The loss weight of a conversation with such a reward."""
        assert self.largest is not None, "reward_facts() saw every reward"
        assert data.beta is not None, "checked by DataSettings"
        shaped = clipped(reward, data) - self.baselines.get(class_name, 0.0)
        return reward_weight(shaped, largest=self.largest, beta=data.beta)

    def quantile_class(self, score: float) -> str:
        """The class of a conversation with such a score, where `data.classes_from` makes the classes."""
        return quantile_class(int(np.searchsorted(self.edges, score, side="right")))


def clipped(reward: float, data: DataSettings) -> float:
    """A reward, clipped to `data.reward_clip`."""
    return reward if data.reward_clip is None else min(max(reward, data.reward_clip[0]), data.reward_clip[1])


def needs_scores(data: DataSettings) -> bool:
    """Whether classes or weights depend on the scores of all rows."""
    return data.classes_from is not None or any(source.reward_field for source in data.sources)


def reward_facts(data: DataSettings, scores: Mapping[str, np.ndarray]) -> RewardFacts:
    """What all scores together decide.

    scores: class ("" where quantiles decide it) -> float64[n], the scores of its usable rows in the order of the
    sources; the mean depends on the order in its last bit.

    Raises UserError where a quantile would be empty, and where the smallest weight would be too small.
    """
    if data.classes_from is not None:
        return RewardFacts(baselines={}, edges=_edges(scores.get("", np.zeros(0)), data))
    if not needs_scores(data):
        return RewardFacts(baselines={})
    specs = class_specs(data)
    rewards = {name: [clipped(float(score), data) for score in values] for name, values in scores.items()}
    baselines = {
        name: float(np.mean(values)) if specs[name].baseline == "mean" else float(specs[name].baseline or 0.0)
        for name, values in rewards.items()
    }
    shaped = [(value - baselines[name], name) for name, values in rewards.items() for value in values]
    shaped += [(spec.reward, name) for name, spec in specs.items() if spec.reward is not None]
    if not shaped:
        return RewardFacts(baselines={}, largest=0.0)
    (smallest, name), (largest, _) = min(shaped), max(shaped)
    assert data.beta is not None, "checked by DataSettings"
    if reward_weight(smallest, largest=largest, beta=data.beta) < SMALLEST_WEIGHT:
        raise UserError(
            "data.beta",
            f"{data.beta} with rewards from {smallest:.6g} (class {name}) to {largest:.6g} gives a weight below "
            f"{SMALLEST_WEIGHT}",
            "raise beta, or set `data.reward_clip`",
        )
    return RewardFacts(baselines=baselines, largest=largest)


def _edges(scores: np.ndarray, data: DataSettings) -> tuple[float, ...]:
    rule = data.classes_from
    assert rule is not None, "asked for quantiles"
    if not len(scores):
        return (0.0,) * (rule.quantiles - 1)  # nothing is left to prepare, which is reported later
    edges = np.quantile(scores, np.arange(1, rule.quantiles) / rule.quantiles)
    sizes = np.bincount(np.searchsorted(edges, scores, side="right"), minlength=rule.quantiles)
    if not sizes.all():
        value, count = Counter(scores.tolist()).most_common(1)[0]
        raise UserError(
            "data.classes_from.quantiles",
            f"quantile {int(np.argmin(sizes)) + 1} of {rule.quantiles} holds no conversation: {rule.field} is "
            f"{value:g} in {count} of {len(scores)}",
            "use fewer quantiles",
        )
    return tuple(float(edge) for edge in edges)
