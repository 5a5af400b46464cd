"""`adapter` of a recipe."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, WithJsonSchema, field_validator, model_validator

from data_pipeline.section import Rule, Section, setting
from ochat_train.recipe.sections.values import Positive, PositiveInt

AdapterTargets = Annotated[
    Literal["all-linear"] | Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)],
    WithJsonSchema(
        {
            "anyOf": [
                {"const": "all-linear"},
                {"type": "array", "items": {"type": "string", "minLength": 1}, "minItems": 1},
            ]
        }
    ),
    Rule("expected `all-linear`, or a list of names such as `[q_proj, v_proj]`"),
]


class AdapterSettings(Section):
    """Train an adapter (LoRA) instead of all weights: the base does not change, and checkpoints hold only the adapter.

    A linear module computes W x + scale * B A x, with W of the base, A of `rank` rows, and B of `rank` columns.
    """

    type: Literal["lora", "qlora"] = setting(
        description="`lora`: the base in `model.precision`. `qlora`: linear modules of the base in 4 bits (NF4), for "
        "GPUs with little memory",
        decides_steps=True,
        is_public=True,
    )
    rank: PositiveInt = setting(16, description="rows of A and columns of B", decides_steps=True, is_public=True)
    alpha: Positive | None = setting(
        None,
        le=10_000.0,
        description="scale = alpha / rank; with `rslora` alpha / sqrt(rank); default: 32, with which the best "
        "learning rate hardly depends on the rank, and 16 with `rslora`",
        decides_steps=True,
        is_public=True,
    )
    dropout: float = setting(
        0.0,
        ge=0.0,
        lt=1.0,
        description="dropout of what A reads; needs layers that are not compiled",
        decides_steps=True,
        is_public=True,
    )
    targets: AdapterTargets = setting(
        "all-linear",
        description="linear modules that get an adapter: all of the decoder layers, or those whose name ends with one "
        "of a list, such as `[q_proj, v_proj]`",
        decides_steps=True,
        is_public=True,
    )
    rslora: bool = setting(
        False, description="scale = alpha / sqrt(rank), for large ranks", decides_steps=True, is_public=True
    )
    dora: bool = setting(
        False,
        description="also train the length of each row of the sum of W and B A (DoRA); slower",
        decides_steps=True,
        is_public=True,
    )
    init: Literal["default", "gaussian", "orthogonal"] = setting(
        "default",
        description="first values of A and B, as PEFT names them; all leave the first result that of the base. "
        "PEFT's others change the base's weights",
        decides_steps=True,
        is_public=True,
    )

    @field_validator("targets")
    @classmethod
    def _targets_differ(cls, value: str | list[str]) -> str | list[str]:
        if isinstance(value, list) and len(set(value)) < len(value):
            raise ValueError("a name is given twice")
        return value

    @model_validator(mode="after")
    def _orthogonal_rank_is_even(self) -> AdapterSettings:
        if self.init == "orthogonal" and self.rank % 2:
            raise ValueError("`init: orthogonal` needs an even rank")
        return self

    @property
    def lora_alpha(self) -> float:
        """`alpha`, or its default."""
        if self.alpha is not None:
            return self.alpha
        return 16.0 if self.rslora else 32.0

    @property
    def scale(self) -> float:
        """What B A x is multiplied by."""
        return self.lora_alpha / (math.sqrt(self.rank) if self.rslora else self.rank)
