"""Learning rates: OpenChat's rule for the peak, and the schedule. Pure functions."""

from __future__ import annotations

import math

from data_pipeline.errors import UserError
from ochat_train.model.families import LEARNING_RATE_DIVISORS

BASE_LEARNING_RATE = 3e-4
BASE_TOKENS_PER_STEP = 4e6


def auto_learning_rate(*, model_type: str, vocab_size: int, supervised_tokens_per_step: float) -> float:
    """Peak learning rate by OpenChat's rule: base * sqrt(supervised tokens per step / 4e6).

    model_type: the model's `model_type` in transformers. vocab_size: tells Llama-3 (128k) from Llama-2 (32k).

    Raises UserError for a model that the rule does not cover.
    """
    family = model_type
    if model_type == "llama":
        family = "llama-3" if vocab_size >= 100_000 else "llama-2"
    if family not in LEARNING_RATE_DIVISORS:
        raise UserError(
            "optimizer.learning_rate", f"`auto` knows Llama, Mistral and Gemma, not `{model_type}`", "give a number"
        )
    return (
        BASE_LEARNING_RATE
        / LEARNING_RATE_DIVISORS[family]
        * math.sqrt(supervised_tokens_per_step / BASE_TOKENS_PER_STEP)
    )


def learning_rate_at(step: int, *, peak: float, num_steps: int, warmup_ratio: float, min_lr_ratio: float) -> float:
    """Learning rate of optimizer step `step`, counted from 1 to `num_steps`.

    Linear to `peak` over the first round(warmup_ratio * num_steps) steps, then a cosine down to min_lr_ratio * peak.
    """
    num_warmup = round(warmup_ratio * num_steps)
    if step < num_warmup:
        return peak * step / num_warmup
    progress = (step - num_warmup) / max(1, num_steps - num_warmup)
    return peak * (min_lr_ratio + (1.0 - min_lr_ratio) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress))))
