"""`optimizer` of a recipe."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, WithJsonSchema

from data_pipeline.section import Rule, Section, setting
from data_pipeline.settings.data import Ratio
from ochat_train.recipe.sections.values import Positive

# AdamW divides the rate by 1 - beta and takes the result as float32, which overflows above this for the largest beta.
_LARGEST_RATE = 1e20
LearningRate = Annotated[
    Annotated[float, Field(gt=0.0, le=_LARGEST_RATE)] | Literal["auto"],
    WithJsonSchema({"anyOf": [{"type": "number", "exclusiveMinimum": 0, "maximum": _LARGEST_RATE}, {"const": "auto"}]}),
    Rule("expected a number above 0 and at most 1e20, or `auto`"),
]


class OptimizerSettings(Section):
    """AdamW with linear warm-up and cosine decay."""

    learning_rate: LearningRate = setting(
        "auto",
        description="peak learning rate; `auto`: by family or width of the base, and supervised tokens per step",
        decides_steps=True,
        is_public=True,
    )
    warmup_ratio: Ratio = setting(
        0.05, description="share of the steps in which the learning rate warms up", decides_steps=True, is_public=True
    )
    min_lr_ratio: float = setting(
        0.1,
        ge=0.0,
        le=1.0,
        description="final learning rate, as a share of the peak",
        decides_steps=True,
        is_public=True,
    )
    weight_decay: float = setting(
        0.1,
        ge=0.0,
        le=_LARGEST_RATE,
        description="AdamW weight decay; applies to all parameters, as in OpenChat",
        decides_steps=True,
        is_public=True,
    )
    betas: Annotated[list[Ratio], Field(min_length=2, max_length=2)] = setting(
        [0.9, 0.95], description="AdamW betas", decides_steps=True, is_public=True
    )
    eps: Positive = setting(1e-5, le=1.0, description="AdamW epsilon", decides_steps=True, is_public=True)
    grad_clip: float = setting(
        1.0,
        ge=0.0,
        description="clip the gradient to this norm; 0 turns clipping off",
        decides_steps=True,
        is_public=True,
    )
    states: Literal["float32", "bfloat16", "8bit"] = setting(
        "float32",
        description="what the optimizer keeps of each parameter. `float32`: a float32 master weight and two float32 "
        "moments, 12 bytes. `bfloat16`: two bfloat16 moments, 5 bytes; `8bit`: two 8-bit moments with a scale for 128 "
        "of them, 3.1 bytes; both keep 8 bits beside the bfloat16 weight instead of a master weight, so that 24 bits "
        "are updated, with stochastic rounding (of a float32 model all 32 bits are)",
        decides_steps=True,
        is_public=True,
    )
