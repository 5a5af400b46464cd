"""Whether the disk has room for a run, before hours are spent on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data_pipeline.errors import UserError
from ochat_train.checkpoint.room import room_for, run_needs
from ochat_train.checkpoint.state import list_checkpoints, step_of
from ochat_train.model.base_class import text_config, trained_parameters
from ochat_train.model.config import model_without_weights, num_parameters
from ochat_train.recipe.recipe import Recipe


def require_room(
    recipe: Recipe, causal_lm: Any, *, num_steps: int, zero_stage: int, num_ranks: int, resume: str
) -> None:
    """Raise UserError, in the words of `ochat check`, where the disk has no room for checkpoints and an export.

    causal_lm: the `transformers` model, with its adapter where the recipe has one. resume: as for `train`. A run that
    is complete needs no room.
    """
    is_resumed = resume != "never"
    if is_resumed and any(step_of(folder) >= num_steps for folder in list_checkpoints(Path(recipe.output_dir))):
        return
    config = causal_lm.config
    needs = run_needs(
        recipe,
        num_parameters=num_parameters(model_without_weights(config), text_config(config).vocab_size),
        num_trained=sum(parameter.numel() for parameter in trained_parameters(causal_lm)),
        zero_stage=zero_stage,
        num_ranks=num_ranks,
        num_steps=num_steps,
        keeps_earlier=is_resumed,
    )
    found = room_for(list(needs)).problem
    if found is not None:
        raise UserError(found.place, found.problem, found.remedy)
