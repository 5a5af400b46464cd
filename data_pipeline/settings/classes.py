"""Classes of conversations in a recipe: named one by one, or made from a score."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import WithJsonSchema, model_validator

from data_pipeline.section import Rule, Section, step_setting
from data_pipeline.text_rules import quoted, text_problem
from data_pipeline.weight import LARGEST_WEIGHT, SMALLEST_WEIGHT

Baseline = Annotated[
    float | Literal["mean"] | None,
    WithJsonSchema({"anyOf": [{"type": "number"}, {"const": "mean"}, {"type": "null"}]}),
    Rule("expected a number, or `mean`"),
]


class ClassSettings(Section):
    """A class of conversations: the condition that joins its role prefixes, and how much its tokens count."""

    condition: str = step_setting(
        description='text added to every role prefix, such as `GPT4 Correct`; `""` means plain `User:` and `Assistant:`'
    )
    reward: float | None = step_setting(None, description="reward r; the loss weight is exp((r - largest r) / beta)")
    weight: float | None = step_setting(
        None, ge=0.0, le=float(LARGEST_WEIGHT), description="the loss weight itself, instead of `reward`"
    )
    baseline: Baseline = step_setting(
        None,
        description="subtracted from the rewards in the rows of this class (`reward_field`): a number, or `mean` for "
        "the mean reward of its conversations",
    )

    @model_validator(mode="after")
    def _one_of_reward_and_weight(self) -> ClassSettings:
        if self.reward is not None and self.weight is not None:
            raise ValueError("give one of `reward` and `weight`, not both")
        if self.baseline is not None and (self.reward is not None or self.weight is not None):
            raise ValueError(
                "`baseline` is for classes whose rewards are in the rows, without `reward` or `weight` here"
            )
        if self.weight is not None and 0.0 < self.weight < SMALLEST_WEIGHT:
            raise ValueError(f"weight {self.weight} is too small; give 0 or at least {SMALLEST_WEIGHT}")
        if (problem := text_problem(self.condition)) is not None:
            raise ValueError(f"condition {problem}")
        return self


class ClassesFrom(Section):
    """Classes made from a score: quantiles with equally many conversations, from the lowest scores (`q1`) up."""

    field: str = step_setting(
        min_length=1,
        description="the field of a row that holds the score, a number (dots for nested fields, `meta.score`)",
    )
    quantiles: int = step_setting(ge=2, le=100, description="number of classes")
    conditions: list[str] = step_setting(description="condition of each class, from the lowest scores to the highest")
    rewards: list[float] | None = step_setting(
        None, description="reward of each class, from the lowest scores to the highest; default: evenly from 0 to 1"
    )

    @model_validator(mode="after")
    def _one_for_each_quantile(self) -> ClassesFrom:
        for name, values in (("conditions", self.conditions), ("rewards", self.rewards)):
            if values is not None and len(values) != self.quantiles:
                raise ValueError(
                    f"`{name}` has {len(values)} entries for {self.quantiles} quantiles; give one for each"
                )
        if len(set(self.conditions)) != len(self.conditions):
            raise ValueError("`conditions` holds the same text twice; give every class its own")
        for condition in self.conditions:
            if (problem := text_problem(condition)) is not None:
                raise ValueError(f"conditions: {quoted(condition)} {problem}")
        return self


def quantile_class(number: int) -> str:
    """Name of the class of quantile `number`, from 0."""
    return f"q{number + 1}"
