"""The parts of a recipe that the data pipeline reads, and the strictness that all sections share."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from data_pipeline.text_rules import text_problem

Ratio = Annotated[float, Field(ge=0.0, lt=1.0)]


SMALLEST_WEIGHT = 1e-30  # far above float32's smallest number, far below any weight that matters


class Section(BaseModel):
    """A recipe section: unknown keys and wrong types are errors, values do not change after loading."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class ClassSettings(Section):
    """A class of conversations: the condition that joins its role prefixes, and how much its tokens count."""

    condition: str = Field(
        description='text that joins every role prefix, such as `GPT4 Correct`; `""` means plain `User:` and `Assistant:`'
    )
    reward: float | None = Field(None, description="reward r; the loss weight is exp((r - largest r) / beta)")
    weight: float | None = Field(None, ge=0.0, le=1e6, description="the loss weight itself, in place of `reward`")

    @model_validator(mode="after")
    def _one_of_reward_and_weight(self) -> ClassSettings:
        if (self.reward is None) == (self.weight is None):
            raise ValueError("give exactly one of `reward` and `weight`")
        if self.weight is not None and 0.0 < self.weight < SMALLEST_WEIGHT:
            raise ValueError(f"weight {self.weight} is next to nothing; give 0 or at least {SMALLEST_WEIGHT}")
        if (problem := text_problem(self.condition)) is not None:
            raise ValueError(f"condition {problem}")
        return self


class SourceSettings(Section):
    """Where raw conversations come from, and which class they have."""

    path: str = Field(
        min_length=1,
        description="a .jsonl, .json or .parquet file, a folder or glob of them, a folder made by "
        "`datasets.save_to_disk`, or `hf://ORG/NAME` for a dataset on the Hub",
    )
    format: Literal["openchat", "sharegpt", "messages", "alpaca"] = Field(description="how a row is laid out")
    class_name: str | None = Field(None, alias="class", description="the class of every row of this source")
    class_field: str | None = Field(
        None, description="in place of `class`: the field of a row (dots go deeper, `meta.quality`) that names its class"
    )
    split: str | None = Field(None, description="split of a Hub dataset or of a folder made by `datasets`")

    @model_validator(mode="after")
    def _class_is_known(self) -> SourceSettings:
        if self.class_name is not None and self.class_field is not None:
            raise ValueError("give one of `class` and `class_field`, not both")
        if self.class_name is None and self.class_field is None and self.format != "openchat":
            raise ValueError("give `class` or `class_field` (only format `openchat` carries its class in the row)")
        return self


class DataSettings(Section):
    """Raw conversations, their classes, and what becomes of rows that do not fit."""

    prepared_dir: str = Field(min_length=1, description="folder of the prepared dataset, written by `ochat prepare`")
    classes: dict[str, ClassSettings] = Field(
        default_factory=dict, description="class name -> condition and reward; optional only for OpenChat's own rows"
    )
    beta: float | None = Field(None, gt=0.0, description="temperature of the rewards, needed when a class has a `reward`")
    sources: list[SourceSettings] = Field(min_length=1, description="what to read, in this order")
    validation_ratio: Ratio = Field(
        0.0, description="share of prompts held out; conversations with the same system text and first prompt stay together"
    )
    validation_seed: int | None = Field(None, ge=0, lt=2**32, description="decides which prompts are held out; default: `seed`")
    only_classes: list[str] | None = Field(
        None, min_length=1, description="keep conversations of these classes alone; the others are left out and counted"
    )
    overlong: Literal["truncate", "drop", "error"] = Field(
        "truncate",
        description="a conversation longer than `model.max_length_tokens`: keep its beginning, leave it out, or stop",
    )
    bad_rows: Literal["error", "drop"] = Field(
        "error", description="a row that cannot be read as a conversation: stop and list them, or leave it out and count it"
    )

    @model_validator(mode="after")
    def _classes_fit_sources(self) -> DataSettings:
        problems = []
        if self.beta is None and any(spec.reward is not None for spec in self.classes.values()):
            problems.append("`beta` is missing: classes with a `reward` need it (OpenChat's 1.0 and 0.1 are beta 0.4342945)")
        for number, source in enumerate(self.sources):
            if source.class_name is not None and source.class_name not in self.classes:
                known = ", ".join(self.classes) or "none"
                problems.append(f"sources.{number}.class: unknown class `{source.class_name}`; classes: {known}")
            if source.class_field is not None and not self.classes:
                problems.append(f"sources.{number}.class_field: needs `data.classes`, which is empty")
        problems += [
            f"only_classes: unknown class `{name}`; classes: {', '.join(self.classes) or 'none'}"
            for name in self.only_classes or ()
            if name not in self.classes
        ]
        if not problems:
            problems += [
                f"classes.{name}: reward {spec.reward} with beta {self.beta} gives a weight of next to nothing; raise beta"
                for name, spec in self.classes.items()
                if spec.reward is not None and class_weights(self)[name] < SMALLEST_WEIGHT
            ]
        if problems:
            raise ValueError("; ".join(problems))
        return self


def class_weights(data: DataSettings) -> dict[str, float]:
    """Loss weight of each class: w = exp((r - r_max) / beta) (C-RLFT, arXiv 2309.11235), or `weight` as given."""
    rewards = [spec.reward for spec in data.classes.values() if spec.reward is not None]
    weights = {}
    for name, spec in data.classes.items():
        if spec.weight is not None:
            weights[name] = spec.weight
        else:
            assert spec.reward is not None, "checked by ClassSettings"
            assert data.beta is not None, "checked by DataSettings"
            weights[name] = math.exp((spec.reward - max(rewards)) / data.beta)
    return weights
