"""What an ablation finds, as values, and as JSON: score.json of each training, results.json of all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ochat_train.evaluation.questions import RightRatios
from ochat_train.evaluation.results import Evaluation
from ochat_train.system.json_values import fields_from


@dataclass(frozen=True, kw_only=True)
class ArmScore:
    """One trained arm on the held-out conversations and questions.

    step: of the checkpoint that was scored. accuracy: condition -> share of right answers by task; empty without
    questions. benchmarks: suite -> condition -> its score; empty without `validation.benchmarks`.
    """

    step: int
    evaluation: Evaluation
    accuracy: Mapping[str, RightRatios]
    benchmarks: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The document of score.json. It has `benchmarks` only if there are any, so older scores stay the same."""
        benchmarks = {"benchmarks": self.benchmarks} if self.benchmarks else {}
        return {"step": self.step, **self.evaluation.to_json(), "accuracy": self.accuracy, **benchmarks}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> ArmScore:
        """From `to_json`. Raises KeyError where a key is missing."""
        return cls(
            step=values["step"],
            evaluation=Evaluation.from_json(values),
            accuracy=values["accuracy"],
            benchmarks=values.get("benchmarks", {}),
        )


@dataclass(frozen=True, kw_only=True)
class ArmResult:
    """An arm. conversations: of its training split. epochs: that its steps took. scores: by seed."""

    title: str
    conversations: int
    epochs: float
    scores: Mapping[int, ArmScore]

    def to_json(self) -> dict[str, Any]:
        """An entry of `arms` in results.json, where seeds are texts."""
        scores = {str(seed): score.to_json() for seed, score in self.scores.items()}
        return {"title": self.title, "conversations": self.conversations, "epochs": self.epochs, "scores": scores}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> ArmResult:
        """From `to_json`. Raises KeyError where a key is missing."""
        return cls(
            title=values["title"],
            conversations=values["conversations"],
            epochs=values["epochs"],
            scores={int(seed): ArmScore.from_json(score) for seed, score in values["scores"].items()},
        )


@dataclass(frozen=True, kw_only=True)
class AblationResults:
    """All arms. recipe: its name. steps: of every training. seeds: trainings of each arm. reference: the arm to compare
    with. inference_class, inference_condition: whose answers are compared, and under which condition arms are asked.
    """

    recipe: str
    steps: int
    seeds: int
    reference: str
    inference_class: str
    inference_condition: str
    arms: Mapping[str, ArmResult]

    def to_json(self) -> dict[str, Any]:
        """The document of results.json."""
        return {**vars(self), "arms": {name: arm.to_json() for name, arm in self.arms.items()}}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> AblationResults:
        """From `to_json`. Raises KeyError where a key is missing."""
        arms = {name: ArmResult.from_json(arm) for name, arm in values["arms"].items()}
        return cls(**fields_from(cls, {**values, "arms": arms}))
