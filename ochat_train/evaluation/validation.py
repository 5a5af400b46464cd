"""Validates a run between its steps: held-out conversations, and answers to prompts."""

from __future__ import annotations

import time
from typing import Any

from data_pipeline.prepared.dataset import Manifest
from ochat_train.distributed.ranks import Ranks
from ochat_train.evaluation.answers import PackedAnswerer
from ochat_train.evaluation.evaluate import Between, evaluate
from ochat_train.evaluation.inputs import validation_inputs
from ochat_train.evaluation.results import Sample, Validation, ValidationResult
from ochat_train.evaluation.samples import answered_prompts
from ochat_train.recipe.recipe import Recipe


class Validator:
    """Validates a run when its `schedule` says so; never where nothing is held out and there are no prompts.

    Raises UserError for a prompt that does not fit into a pack with its answer.
    """

    def __init__(self, recipe: Recipe, manifest: Manifest, *, num_steps: int) -> None:
        self._inputs, self._seed = validation_inputs(recipe, manifest), recipe.seed
        self._answerer = PackedAnswerer(
            end_id=self._inputs.tokenizer.eos_token_id,
            pack_length=recipe.train.pack_length_tokens,
            compiled=bool(recipe.model.compile),
        )
        self.schedule = self._inputs.schedule(recipe, num_steps=num_steps)

    def is_due(self, step: int, *, saves: bool) -> bool:
        """Whether to validate after step `step` (from 1); saves: whether a checkpoint follows."""
        return self.schedule.is_due(step, saves=saves)

    def run(self, engine: Any, ranks: Ranks, step: int, *, between: Between) -> ValidationResult:
        """Validate; all ranks call it and get the same. between: called on all ranks between its parts."""
        start = time.monotonic()
        held_out = self._inputs.held_out
        found = None if held_out is None else evaluate(engine, held_out, ranks, seed=self._seed, between=between)
        answers = answered_prompts(self._answerer, self._inputs, engine, ranks, between=between)
        seconds = round(time.monotonic() - start, 3)
        return ValidationResult(
            validation=None if found is None else Validation(step=step, evaluation=found, seconds=seconds),
            samples=[Sample(step=step, prompt=text, answers=by_condition) for text, by_condition in answers],
        )
