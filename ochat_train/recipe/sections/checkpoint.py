"""`checkpoint` of a recipe."""

from __future__ import annotations

from data_pipeline.section import Section, setting
from ochat_train.recipe.sections.values import PositiveInt


class CheckpointSettings(Section):
    """When checkpoints are written, and how many are kept."""

    save_every_steps: PositiveInt | None = setting(
        None,
        description="write a checkpoint every N steps, and at the end; default: only at the end",
        decides_steps=False,
        is_public=True,
    )
    keep_last: PositiveInt = setting(
        2,
        description="how many checkpoints to keep, in addition to the one with the lowest validation loss",
        decides_steps=False,
        is_public=True,
    )
