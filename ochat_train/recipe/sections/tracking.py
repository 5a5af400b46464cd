"""`tracking` of a recipe."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from data_pipeline.section import Rule, Section, setting

Wandb = Annotated[bool | Literal["online", "offline"], Rule("expected `true`, `false`, `online` or `offline`")]


class TrackingSettings(Section):
    """Where metrics go, in addition to `metrics.jsonl` in the run folder."""

    wandb: Wandb = setting(
        False,
        description="log to Weights & Biases; `true` means `online`, `offline` writes into the run folder for `wandb "
        "sync`",
        decides_steps=False,
        is_public=False,
    )
    wandb_project: str = setting(
        "ochat-train",
        min_length=1,
        description="project of the run on Weights & Biases",
        decides_steps=False,
        is_public=False,
    )
    wandb_entity: str | None = setting(
        None,
        min_length=1,
        description="team or user on Weights & Biases; default: your default entity",
        decides_steps=False,
        is_public=False,
    )
    wandb_group: str | None = setting(
        None,
        min_length=1,
        description="name of a group of runs on Weights & Biases",
        decides_steps=False,
        is_public=False,
    )
    wandb_tags: list[Annotated[str, Field(min_length=1)]] = setting(
        default_factory=list, description="tags of the run on Weights & Biases", decides_steps=False, is_public=False
    )
    tensorboard: bool = setting(
        False, description="write TensorBoard files into the run folder", decides_steps=False, is_public=False
    )
