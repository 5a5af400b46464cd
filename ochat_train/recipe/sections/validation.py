"""`validation` of a recipe."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import Field, field_validator

from data_pipeline.path_keys import PathText
from data_pipeline.section import Section, setting
from ochat_train.recipe.sections.values import PositiveInt


class BenchmarkSettings(Section):
    """A benchmark that the model answers during training."""

    suite: str = setting(
        min_length=1,
        description="name of a suite of `ochat eval` whose answers need no judge and no code to run",
        decides_steps=False,
        is_public=True,
    )
    data: PathText | None = setting(
        None,
        description="file, folder or tar archive with the suite's questions",
        decides_steps=False,
        is_public=True,
    )
    conditions: list[str] | None = setting(
        None,
        min_length=1,
        description="conditions to ask under; default: those of all classes",
        decides_steps=False,
        is_public=True,
    )
    limit: PositiveInt | None = setting(
        None,
        description="questions to ask, a random sample that stays the same over the run; default: as many as take 5 % "
        "of the time on one GPU, for all benchmarks together",
        decides_steps=False,
        is_public=True,
    )
    answer_tokens: PositiveInt | None = setting(
        None, description="longest answer, in tokens; default: the suite's own", decides_steps=False, is_public=True
    )


class ValidationSettings(Section):
    """Validation on held-out conversations (`data.validation_ratio`) during training."""

    every_steps: PositiveInt | None = setting(
        None,
        description="validate every N steps, before every checkpoint and at the end; default: ten times per run, or "
        "less often if that would take more than 4 % of the time on one GPU",
        decides_steps=False,
        is_public=True,
    )
    prompts: list[Annotated[str, Field(min_length=1)]] = setting(
        default_factory=list,
        description="user messages that the model answers under every condition at each validation; default: three "
        "held-out conversations",
        decides_steps=False,
        is_public=True,
    )
    sample_tokens: Annotated[int, Field(ge=0)] = setting(
        64,
        description="longest answer to a prompt, in tokens; 0 turns answers off",
        decides_steps=False,
        is_public=True,
    )
    questions: PathText | None = setting(
        None,
        description="file of questions with checkable answers for `ochat ablate`: JSON lines with `question`, "
        "`answer` and, if there are several tasks, `task`",
        decides_steps=False,
        is_public=True,
    )
    answer_pattern: str | None = setting(
        None,
        min_length=1,
        description="regular expression that finds the part of an answer to compare: its last match, or the first "
        "group of that match; default: the whole answer",
        decides_steps=False,
        is_public=True,
    )
    benchmarks: list[BenchmarkSettings] = setting(
        default_factory=list,
        description="benchmarks that the model answers at every validation, and that `ochat ablate` scores its arms on",
        decides_steps=False,
        is_public=True,
    )
    answer_tokens: PositiveInt = setting(
        256, description="longest answer to a question, in tokens", decides_steps=False, is_public=True
    )

    @field_validator("answer_pattern")
    @classmethod
    def _pattern_compiles(cls, value: str | None) -> str | None:
        try:
            re.compile(value or "")
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from None
        return value
