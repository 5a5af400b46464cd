"""The `data` section: sources, classes, and how to treat rows that do not fit."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from data_pipeline.path_keys import PathText
from data_pipeline.section import Section, setting, step_setting
from data_pipeline.settings.classes import ClassesFrom, ClassSettings, quantile_class
from data_pipeline.settings.problems import problems_of
from data_pipeline.settings.sources import SourceSettings
from data_pipeline.weight import LARGEST_WEIGHT, SMALLEST_WEIGHT, reward_weight

Ratio = Annotated[float, Field(ge=0.0, lt=1.0)]
PartWeight = Annotated[float, Field(ge=0.0, le=float(LARGEST_WEIGHT))]


class PartWeightSettings(Section):
    """How much the parts of an answer count, as factors of its weight. Results of tools are never trained on."""

    reasoning: PartWeight = step_setting(1.0, description="of the reasoning")
    answer: PartWeight = step_setting(1.0, description="of the text")
    tool_calls: PartWeight = step_setting(1.0, description="of the tool calls")


class DataSettings(Section):
    """Raw conversations, their classes, and how to treat rows that do not fit."""

    prepared_dir: PathText = setting(
        description="folder of the prepared dataset, written by `ochat prepare`",
        decides_steps=False,
        is_public=False,
    )
    classes: dict[str, ClassSettings] = step_setting(
        default_factory=dict, description="class name -> condition and reward; only OpenChat's own rows can do without"
    )
    classes_from: ClassesFrom | None = step_setting(
        None, description="instead of `classes`: classes made from a score in the rows"
    )
    beta: float | None = step_setting(
        None, gt=0.0, description="temperature of the rewards; required if there are rewards"
    )
    reward_clip: Annotated[list[float], Field(min_length=2, max_length=2)] | None = step_setting(
        None, description="[low, high]: rewards in the rows (`reward_field`) are clipped to this range"
    )
    condition_dropout: Ratio = step_setting(
        0.0,
        description="share of the training conversations that are prompted without their condition, so that the model "
        "can also be used without one; class and weight do not change",
    )
    sources: list[SourceSettings] = step_setting(min_length=1, description="what to read, in this order")
    validation_ratio: Ratio = step_setting(
        0.0,
        description="share of prompts held out for validation; conversations with the same system text and first "
        "prompt stay together",
    )
    validation_seed: int | None = step_setting(
        None, ge=0, lt=2**32, description="seed that selects the held-out prompts; default: `seed`"
    )
    ignore_fields: list[str] = step_setting(
        default_factory=list,
        description="fields of rows that hold text, lists or marks and are left out on purpose; dots for nested ones "
        "(`meta.notes`, `messages.comment`)",
    )
    only_classes: list[str] | None = step_setting(
        None, min_length=1, description="keep only conversations of these classes; the others are dropped and counted"
    )
    overlong: Literal["truncate", "drop", "error"] = step_setting(
        "truncate",
        description="what to do with a conversation longer than `model.max_length_tokens`: cut off its end, drop it, "
        "or stop",
    )
    bad_rows: Literal["error", "drop"] = step_setting(
        "error",
        description="what to do with rows that are not valid conversations: stop and list them, or drop and count them",
    )
    part_weights: PartWeightSettings | None = step_setting(
        None, description="factors for the parts of an answer, such as `{reasoning: 0.8}`; default: all of them 1"
    )

    @property
    def scored_by(self) -> str | None:
        """The field whose quantiles decide the classes, None where the recipe names the classes."""
        return self.classes_from.field if self.classes_from else None

    @model_validator(mode="after")
    def _sections_fit_together(self) -> DataSettings:
        problems = list(problems_of(self))
        specs = class_specs(self)
        problems += [
            f"only_classes: unknown class `{name}`; classes: {', '.join(self.classes) or 'none'}"
            for name in self.only_classes or ()
            if name not in specs
        ]
        if not problems:
            weights = class_weights(self)
            problems += [
                f"classes.{name}: reward {spec.reward} with beta {self.beta} gives a weight below {SMALLEST_WEIGHT}; "
                "raise beta"
                for name, spec in specs.items()
                if spec.reward is not None and (weights[name] or 0.0) < SMALLEST_WEIGHT
            ]
        if problems:
            raise ValueError("; ".join(problems))
        return self


def class_specs(data: DataSettings) -> dict[str, ClassSettings]:
    """The classes, as the recipe gives them or as `classes_from` makes them."""
    rule = data.classes_from
    if rule is None:
        return dict(data.classes)
    rewards = rule.rewards or [number / (rule.quantiles - 1) for number in range(rule.quantiles)]
    pairs = enumerate(zip(rule.conditions, rewards, strict=True))
    return {quantile_class(number): ClassSettings(condition=text, reward=reward) for number, (text, reward) in pairs}


def class_weights(data: DataSettings, *, largest_reward: float | None = None) -> dict[str, float | None]:
    """Loss weight of each class: by its reward (weight.py), or `weight` as given.

    None for a class whose rewards are in its rows. largest_reward: r_max, where rows have rewards too.
    """
    specs = class_specs(data)
    rewards = [spec.reward for spec in specs.values() if spec.reward is not None]
    largest = max(rewards, default=0.0) if largest_reward is None else largest_reward
    weights = {}
    for name, spec in specs.items():
        weights[name] = spec.weight
        if spec.reward is not None:
            assert data.beta is not None, "checked by DataSettings"
            weights[name] = reward_weight(spec.reward, largest=largest, beta=data.beta)
    return weights
