"""Rewards of single conversations: from a number in each row to a loss weight, or to a class.

Weights: w = exp((r - r_max) / beta) (C-RLFT, arXiv 2309.11235), where r is the row's reward, clipped to
`data.reward_clip`, less the baseline of its class, and r_max the largest such r of all conversations and of the classes
that have a reward of their own. So no weight is above 1, and only differences between rewards count.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from data_pipeline.errors import RowError, UserError
from data_pipeline.read import sources
from data_pipeline.read.formats import parse_row
from data_pipeline.settings import SMALLEST_WEIGHT, DataSettings, class_specs, quantile_class


@dataclass(frozen=True, kw_only=True)
class RewardFacts:
    """What must be known of all rows before the first one gets a weight or a class.

    largest: r_max; None where no row has a reward. baselines: class -> number that is taken off its rewards.
    edges: ascending scores that part the quantile classes; a score equal to an edge belongs to the class above.
    """

    largest: float | None = None
    baselines: Mapping[str, float]
    edges: Sequence[float] = ()

    def weight(self, reward: float, *, class_name: str, data: DataSettings) -> float:
        """The loss weight of a conversation with such a reward."""
        assert self.largest is not None, "survey() saw every reward"
        assert data.beta is not None, "checked by DataSettings"
        shaped = clipped(reward, data) - self.baselines.get(class_name, 0.0)
        return math.exp((shaped - self.largest) / data.beta)

    def quantile_class(self, score: float) -> str:
        """The class of a conversation with such a score, where `data.classes_from` makes the classes."""
        return quantile_class(int(np.searchsorted(self.edges, score, side="right")))


def clipped(reward: float, data: DataSettings) -> float:
    """A reward inside of `data.reward_clip`."""
    return reward if data.reward_clip is None else min(max(reward, data.reward_clip[0]), data.reward_clip[1])


def survey(data: DataSettings) -> RewardFacts:
    """Read all rows that have a reward or a score, once, before they are prepared.

    Rows that cannot be used are passed over here; the preparation reports them. Raises UserError where a quantile would
    be empty, and where the smallest weight would be next to nothing.
    """
    if data.classes_from is not None:
        return RewardFacts(baselines={}, edges=_edges([score for _, score in _scores(data)], data))
    if not any(source.reward_field for source in data.sources):
        return RewardFacts(baselines={})
    specs = class_specs(data)
    rewards: dict[str, list[float]] = {}
    for name, reward in _scores(data):
        rewards.setdefault(name, []).append(clipped(reward, data))
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
    if (smallest - largest) / data.beta < math.log(SMALLEST_WEIGHT):
        raise UserError(
            "data.beta",
            f"{data.beta} with rewards from {smallest:.6g} (class {name}) to {largest:.6g} gives a weight of next to "
            "nothing",
            "raise beta, or set `data.reward_clip`",
        )
    return RewardFacts(baselines=baselines, largest=largest)


def _scores(data: DataSettings) -> Iterator[tuple[str, float]]:
    """Class ("" where quantiles will decide it) and reward of every usable row of the sources that have one."""
    scored_by = data.classes_from.field if data.classes_from else None
    for number, source in enumerate(data.sources):
        if scored_by is None and source.reward_field is None:
            continue
        for chunk in sources.chunks(source, where=f"data.sources.{number}"):
            for place, row in sources.read_chunk(chunk):
                try:
                    conversation = parse_row(row, place=place, source=source, scored_by=scored_by)
                except RowError:
                    continue
                name = source.class_name or conversation.class_value or ""
                assert conversation.score is not None, "parse_row reads it"
                if scored_by is not None or name in data.classes:
                    yield name, conversation.score


def _edges(scores: Sequence[float], data: DataSettings) -> tuple[float, ...]:
    rule = data.classes_from
    assert rule is not None, "asked for quantiles"
    if not scores:
        return (0.0,) * (rule.quantiles - 1)  # nothing is left to prepare, which is reported then
    edges = np.quantile(scores, np.arange(1, rule.quantiles) / rule.quantiles)
    sizes = np.bincount(np.searchsorted(edges, scores, side="right"), minlength=rule.quantiles)
    if not sizes.all():
        value, count = Counter(scores).most_common(1)[0]
        raise UserError(
            "data.classes_from.quantiles",
            f"quantile {int(np.argmin(sizes)) + 1} of {rule.quantiles} holds no conversation: {rule.field} is "
            f"{value:g} in {count} of {len(scores)}",
            "use fewer quantiles",
        )
    return tuple(float(edge) for edge in edges)
