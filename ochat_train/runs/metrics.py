"""A line of metrics.jsonl as a value (docs/run-files.md has the meaning of each key)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ochat_train.system.json_values import fields_from


@dataclass(frozen=True, kw_only=True)
class ClassMeans:
    """A class over one or several steps; means are None for a class without tokens, and where they are not finite.

    loss: weighted mean nll, nats per token. accuracy: weighted share of tokens that were ranked first.
    tokens: prompts included. weight_share: of the weight of all classes.
    effective_tokens: (sum w)^2 / sum w^2 over supervised tokens (Kish's effective sample size): how many tokens of one
    weight would give a mean as certain.
    """

    loss: float | None
    accuracy: float | None
    tokens: int
    supervised_tokens: int
    weight_share: float | None
    effective_tokens: float | None


@dataclass(frozen=True, kw_only=True)
class Means:
    """One or several steps, over all classes and for each. weight: sum of the weights, None where it is not finite."""

    loss: float | None
    accuracy: float | None
    tokens: int
    supervised_tokens: int
    effective_tokens: float | None
    weight: float | None
    classes: Mapping[str, ClassMeans]

    def to_json(self) -> dict[str, Any]:
        """The keys of a line of metrics.jsonl that it makes up."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Means:
        """From `to_json`, which may also hold other keys. Raises KeyError where one is missing."""
        classes = {name: ClassMeans(**fields_from(ClassMeans, row)) for name, row in values["classes"].items()}
        return cls(**{**fields_from(cls, values), "classes": classes})


@dataclass(frozen=True, kw_only=True)
class EpochMeans:
    """An epoch, as far as it was trained. steps: the first and last one that count, from 1 over the whole run; None for
    a whole epoch.
    """

    epoch: int
    steps: tuple[int, int] | None
    means: Means


@dataclass(frozen=True, kw_only=True)
class Speed:
    """How fast a step was. mfu: None where the GPU's peak is not known. memory_gib: None on a CPU."""

    tokens_per_second: float
    mfu: float | None
    memory_gib: float | None
    data_wait_ratio: float


@dataclass(frozen=True, kw_only=True)
class ExpertMeans:
    """A mixture of experts in a step. A share is of the tokens that the routers of one layer send to experts, so with E
    experts it is 1/E where all get the same.

    router_aux_loss: what the router loss adds to the loss, its coefficient included; None where none is trained on.
    least_share, most_share: over all layers and experts. unused_experts: experts of all layers that got no token. These
    are None where tokens were not counted.
    """

    router_aux_loss: float | None
    least_share: float | None
    most_share: float | None
    unused_experts: int | None


@dataclass(frozen=True, kw_only=True)
class StepMetrics:
    """A logged step. step: from 1. epoch: from 0. grad_norm: before clipping, None where it is not finite.

    nonfinite_steps: steps so far that updated nothing. experts: None for models without experts. time: when it was
    logged (`starts.utc_time`), None in lines of older versions.
    """

    step: int
    epoch: int
    means: Means
    learning_rate: float
    grad_norm: float | None
    nonfinite_steps: int
    speed: Speed
    experts: ExpertMeans | None = None
    time: str | None = None

    def to_json(self) -> dict[str, Any]:
        """A line of metrics.jsonl."""
        return {
            "step": self.step,
            "epoch": self.epoch,
            **self.means.to_json(),
            "learning_rate": self.learning_rate,
            "grad_norm": self.grad_norm,
            "nonfinite_steps": self.nonfinite_steps,
            **asdict(self.speed),
            **({} if self.experts is None else {"experts": asdict(self.experts)}),
            **({} if self.time is None else {"time": self.time}),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> StepMetrics:
        """From a line of metrics.jsonl. Raises KeyError where a key is missing."""
        return cls(
            step=values["step"],
            epoch=values["epoch"],
            means=Means.from_json(values),
            learning_rate=values["learning_rate"],
            grad_norm=values["grad_norm"],
            nonfinite_steps=values["nonfinite_steps"],
            speed=Speed(**fields_from(Speed, values)),
            experts=ExpertMeans(**fields_from(ExpertMeans, values["experts"])) if "experts" in values else None,
            time=values.get("time"),
        )


@dataclass(frozen=True, kw_only=True)
class ExpertShares:
    """A line of experts.jsonl: where the tokens of some steps went. steps: the first and the last, from 1.

    layers: for each layer with experts the share of each expert, as in `ExpertMeans`.
    """

    steps: tuple[int, int]
    layers: list[list[float | None]]

    def to_json(self) -> dict[str, Any]:
        """A line of experts.jsonl."""
        return {"step": self.steps[1], "first_step": self.steps[0], "layers": self.layers}
