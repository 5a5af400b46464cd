"""What each validation of a run reads: packed held-out conversations, and prompts. No model is needed to know it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline.prepared.dataset import TOKENIZER_FOLDER, Manifest
from ochat_train.evaluation.held_out import HeldOutData, held_out_data
from ochat_train.evaluation.prompts import SamplePrompt, num_answer_tokens, sample_prompts
from ochat_train.evaluation.schedule import ValidationSchedule, default_interval
from ochat_train.recipe.recipe import Recipe
from ochat_train.system.pretrained import load_tokenizer


@dataclass(frozen=True, kw_only=True)
class ValidationInputs:
    """held_out: None where nothing is held out. prompts: may be none. sample_tokens: the longest answer to a prompt.

    tokenizer: of the prepared dataset, as `transformers` loads it.
    """

    tokenizer: Any
    held_out: HeldOutData | None
    prompts: Sequence[SamplePrompt]
    sample_tokens: int

    @property
    def held_out_tokens(self) -> int:
        """Tokens of held-out conversations that one validation reads, padding included."""
        return self.held_out.num_tokens if self.held_out else 0

    @property
    def num_answer_tokens(self) -> int:
        """Tokens that the answers to all prompts read, at most."""
        return num_answer_tokens(self.prompts, max_new_tokens=self.sample_tokens)

    def schedule(self, recipe: Recipe, *, num_steps: int) -> ValidationSchedule:
        """When a run of `num_steps` steps validates: as the recipe says, or by what a validation costs."""
        every_steps = recipe.validation.every_steps or default_interval(
            held_out_tokens=self.held_out_tokens,
            sample_tokens=self.num_answer_tokens,
            tokens_per_step=recipe.train.tokens_per_step,
            num_steps=num_steps,
        )
        return ValidationSchedule(
            every_steps=every_steps,
            num_steps=num_steps,
            has_held_out=self.held_out is not None,
            has_prompts=bool(self.prompts),
        )


def validation_inputs(recipe: Recipe, manifest: Manifest) -> ValidationInputs:
    """Open what a recipe's validations read. Raises UserError for a prompt that does not fit into a pack."""
    prepared_dir, settings = Path(recipe.data.prepared_dir), recipe.validation
    pack_length = recipe.train.pack_length_tokens
    held_out = None
    if manifest.splits["validation"].conversations:
        held_out = held_out_data(prepared_dir, manifest, pack_length=pack_length)
    tokenizer = load_tokenizer(prepared_dir / TOKENIZER_FOLDER)
    prompts = sample_prompts(
        tokenizer,
        manifest,
        held_out,
        texts=settings.prompts,
        max_new_tokens=settings.sample_tokens,
        pack_length=pack_length,
    )
    return ValidationInputs(
        tokenizer=tokenizer, held_out=held_out, prompts=prompts, sample_tokens=settings.sample_tokens
    )
