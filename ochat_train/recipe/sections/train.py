"""`train` of a recipe."""

from __future__ import annotations

from typing import Literal

from pydantic import field_validator, model_validator

from data_pipeline.hub_names import hub_name_problem
from data_pipeline.plan.kinds import PlanKind
from data_pipeline.section import Section, setting
from ochat_train.recipe.sections.values import Positive, PositiveInt


class TrainSettings(Section):
    """Batch size, number of steps, and what happens when something goes wrong."""

    epochs: PositiveInt = setting(description="passes over the training split", decides_steps=True, is_public=True)
    pack_length_tokens: PositiveInt = setting(description="length of a pack", decides_steps=True, is_public=True)
    packs_per_micro_batch: PositiveInt | None = setting(
        None,
        description="packs that a GPU processes at once; default: as many as fit into its memory and make it faster",
        decides_steps=False,
        is_public=True,
    )
    gradient_dtype: Literal["float32", "bfloat16"] = setting(
        "float32",
        description="dtype in which a GPU accumulates gradients over the packs of a step (bfloat16 models only). "
        "`bfloat16` needs half the memory but rounds after every pack. ZeRO 2 without `offload_optimizer` always "
        "accumulates in float32, at no extra memory",
        decides_steps=True,
        is_public=True,
    )
    tokens_per_step: PositiveInt = setting(
        description="tokens in one optimizer step over all GPUs, padding included; a multiple of `pack_length_tokens`",
        decides_steps=True,
        is_public=True,
    )
    loss_denominator: Literal["epoch", "step"] = setting(
        "epoch",
        description="what the weighted loss of a step is divided by. `epoch`: the mean weight per step, a constant "
        "(unbiased). `step`: the step's own weight, as in OpenChat (cancels class weights in small steps)",
        decides_steps=True,
        is_public=True,
    )
    plan: PlanKind = setting(
        "varied",
        description="which packs form a step. `varied`: random ones. `balanced`: random ones of about the same cost, "
        "for fewer than four packs per GPU and step (`ochat plan` says what it saves). `first`: as in runs that began "
        "before this key; they resume with it by themselves",
        decides_steps=True,
        is_public=True,
    )
    max_steps: PositiveInt | None = setting(
        None,
        description="stop after this many optimizer steps; default: all epochs",
        decides_steps=True,
        is_public=True,
    )
    log_every_steps: PositiveInt = setting(
        1, description="write metrics every N steps", decides_steps=False, is_public=True
    )
    max_nonfinite_steps: PositiveInt = setting(
        3,
        description="stop after this many steps in a row whose loss or gradient is not finite; such steps do not "
        "update the model",
        decides_steps=False,
        is_public=True,
    )
    hang_timeout_seconds: Positive = setting(
        1800.0,
        description="abort if a rank makes no progress for this long; must exceed one step plus one save",
        decides_steps=False,
        is_public=True,
    )
    push_to_hub: str | None = setting(
        None,
        description="Hugging Face Hub repository (`ORG/NAME`) to push the model to in the background: the checkpoint "
        "with the lowest validation loss, or the newest one if there is no validation. Needs `HF_TOKEN` in the "
        "environment",
        decides_steps=False,
        is_public=True,
    )
    hub_private: bool = setting(
        True,
        description="create that repository as private; set `false` for a public repository, also if it already exists",
        decides_steps=False,
        is_public=True,
    )

    @field_validator("push_to_hub")
    @classmethod
    def _is_a_repository(cls, value: str | None) -> str | None:
        if value is not None and (problem := hub_name_problem(value)) is not None:
            raise ValueError(problem)
        return value

    @model_validator(mode="after")
    def _whole_packs(self) -> TrainSettings:
        if self.tokens_per_step % self.pack_length_tokens:
            multiple = max(1, round(self.tokens_per_step / self.pack_length_tokens)) * self.pack_length_tokens
            raise ValueError(
                f"tokens_per_step {self.tokens_per_step} is not a multiple of pack_length_tokens "
                f"{self.pack_length_tokens}; the nearest is {multiple}"
            )
        return self

    @property
    def packs_per_step(self) -> int:
        """Packs in one optimizer step."""
        return self.tokens_per_step // self.pack_length_tokens
