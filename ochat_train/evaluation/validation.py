"""Validates a run between its steps: held-out conversations, and answers to prompts."""

from __future__ import annotations

import time
from typing import Any

from data_pipeline.prepared.dataset import Manifest
from ochat_train.distributed.ranks import Ranks
from ochat_train.evaluation.evaluate import Between, evaluate, nothing_between
from ochat_train.evaluation.inputs import validation_inputs
from ochat_train.evaluation.results import Sample, Validation, ValidationResult
from ochat_train.evaluation.samples import Sampler
from ochat_train.recipe.recipe import Recipe


class Validator:
    """Validates a run when its `schedule` says so; never where nothing is held out and there are no prompts.

    Raises UserError for a prompt that does not fit into a pack with its answer.
    """

    def __init__(self, recipe: Recipe, manifest: Manifest, *, num_steps: int) -> None:
        inputs = validation_inputs(recipe, manifest)
        self._held_out, self._seed = inputs.held_out, recipe.seed
        self._sampler = Sampler(
            inputs.tokenizer,
            inputs.prompts,
            max_new_tokens=inputs.sample_tokens,
            pack_length=recipe.train.pack_length_tokens,
            compiled=bool(recipe.model.compile),
        )
        self.schedule = inputs.schedule(recipe, num_steps=num_steps)

    def is_due(self, step: int, *, saves: bool) -> bool:
        """Whether to validate after step `step` (from 1); saves: whether a checkpoint follows."""
        return self.schedule.is_due(step, saves=saves)

    def run(self, engine: Any, ranks: Ranks, step: int, *, between: Between = nothing_between) -> ValidationResult:
        """Validate; all ranks call it and get the same. between: called on all ranks between its parts."""
        start = time.monotonic()
        found = (
            None
            if self._held_out is None
            else evaluate(engine, self._held_out, ranks, seed=self._seed, between=between)
        )
        answers = self._sampler.answers(engine, ranks, between=between)
        seconds = round(time.monotonic() - start, 3)
        return ValidationResult(
            validation=None if found is None else Validation(step=step, evaluation=found, seconds=seconds),
            samples=[Sample(step=step, prompt=text, answers=by_condition) for text, by_condition in answers],
        )
