"""The results of evaluations and validations as values, and as the JSON lines of a run folder (docs/run-files.md).

Numbers that are not finite are None, and null in JSON.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from ochat_train.evaluation.condition_matrix import ConditionMatrix
from ochat_train.system.json_values import fields_from


@dataclass(frozen=True, kw_only=True)
class ClassScores:
    """How well the held-out answers of a class are predicted; means are None for a class without any.

    loss: weighted mean nll, nats per token. nll, accuracy: of all supervised tokens, each of the same weight.
    """

    loss: float | None
    nll: float | None
    accuracy: float | None
    conversations: int
    supervised_tokens: int


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What one pass over held-out conversations gives.

    loss: weighted mean nll over all classes, nats per token, as the training loss. classes: by name.
    """

    loss: float | None
    classes: Mapping[str, ClassScores]
    matrix: ConditionMatrix

    def to_json(self) -> dict[str, Any]:
        """The keys of a line of validation.jsonl, without `step` and `seconds`."""
        classes = {name: asdict(scores) for name, scores in self.classes.items()}
        return {"loss": self.loss, "classes": classes, **self.matrix.to_json()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Evaluation:
        """From `to_json`, which may also hold other keys. Raises KeyError where one is missing."""
        classes = {name: ClassScores(**fields_from(ClassScores, row)) for name, row in values["classes"].items()}
        return cls(loss=values["loss"], classes=classes, matrix=ConditionMatrix.from_json(values))

    def without_verdicts(self) -> Evaluation:
        """The evaluation of a model that was trained with one condition, and had none to learn."""
        return replace(self, matrix=self.matrix.without_verdicts())


@dataclass(frozen=True, kw_only=True)
class Validation:
    """An evaluation after step `step` of a run. seconds: that it took, answers to prompts included."""

    step: int
    evaluation: Evaluation
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """A line of validation.jsonl."""
        return {"step": self.step, **self.evaluation.to_json(), "seconds": self.seconds}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Validation:
        """From a line of validation.jsonl. Raises KeyError where a key is missing."""
        return cls(step=values["step"], evaluation=Evaluation.from_json(values), seconds=values["seconds"])


@dataclass(frozen=True, kw_only=True)
class Answer:
    """An answer to a prompt under a condition. finished: whether the model ended its turn."""

    condition: str
    text: str
    finished: bool


@dataclass(frozen=True, kw_only=True)
class Sample:
    """The answers to a prompt after step `step` of a run, one for each condition."""

    step: int
    prompt: str
    answers: Sequence[Answer]

    def to_json(self) -> dict[str, Any]:
        """A line of samples.jsonl."""
        return {"step": self.step, "prompt": self.prompt, "answers": [asdict(answer) for answer in self.answers]}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Sample:
        """From a line of samples.jsonl. Raises KeyError where a key is missing."""
        answers = [Answer(**fields_from(Answer, answer)) for answer in values["answers"]]
        return cls(step=values["step"], prompt=values["prompt"], answers=answers)


@dataclass(frozen=True, kw_only=True)
class BenchmarkScore:
    """The score of a benchmark under a condition. score: mean over questions, low, high: its 95 % interval.

    answered: share in which the benchmark's rule found an answer. cut: share of answers that reached the limit of
    tokens. questions: that were asked.
    """

    suite: str
    condition: str
    score: float
    low: float
    high: float
    answered: float
    cut: float
    questions: int


@dataclass(frozen=True, kw_only=True)
class BenchmarkScores:
    """Benchmarks after step `step` of a run. seconds: that they took.

    benchmark_time_ratio: time of all benchmarks relative to that of the run, both since its last start.
    """

    step: int
    scores: Sequence[BenchmarkScore]
    seconds: float
    benchmark_time_ratio: float

    def to_json(self) -> dict[str, Any]:
        """A line of benchmarks.jsonl."""
        return {**vars(self), "scores": [asdict(score) for score in self.scores]}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> BenchmarkScores:
        """From a line of benchmarks.jsonl. Raises KeyError where a key is missing."""
        scores = [BenchmarkScore(**fields_from(BenchmarkScore, score)) for score in values["scores"]]
        return cls(**fields_from(cls, {**values, "scores": scores}))


@dataclass(frozen=True, kw_only=True)
class ValidationResult:
    """What a validation gives. validation: None where nothing is held out. samples: one for each prompt.

    benchmarks: None where none was due.
    """

    validation: Validation | None
    samples: Sequence[Sample]
    benchmarks: BenchmarkScores | None = None

    @property
    def loss(self) -> float | None:
        """The held-out loss; None where nothing is held out, and where it is not finite."""
        return None if self.validation is None else self.validation.evaluation.loss
