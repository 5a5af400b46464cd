"""Learning rates: OpenChat's rule for the peak, and the schedule. Pure functions."""

from __future__ import annotations

import math

from data_pipeline.errors import UserError
from ochat_train.model.families import architectures, family_of

BASE_LEARNING_RATE = 3e-4  # of Llama-2, at so many supervised tokens a step
BASE_TOKENS_PER_STEP = 4e6


def auto_learning_rate(*, model_type: str, vocab_size: int, supervised_tokens_per_step: float) -> float:
    """Peak learning rate by OpenChat's rule: 3e-4 / divisor * sqrt(supervised tokens per step / 4e6).

    The divisor is the family's (`families.FAMILIES`); model_type and vocab_size are the base's `config.json`.
    Raises UserError for a model that belongs to no family.
    """
    family = family_of(model_type, vocab_size)
    if family is None:
        *others, last = architectures()
        raise UserError(
            "optimizer.learning_rate",
            f"`auto` knows {', '.join(others)} and {last}, not `{model_type}`",
            "give a number",
        )
    scale = math.sqrt(supervised_tokens_per_step / BASE_TOKENS_PER_STEP)
    return BASE_LEARNING_RATE / family.learning_rate_divisor * scale


def learning_rate_at(step: int, *, peak: float, num_steps: int, warmup_ratio: float, min_lr_ratio: float) -> float:
    """Learning rate of optimizer step `step`, counted from 1 to `num_steps`.

    Rises linearly to `peak` over the first round(warmup_ratio * num_steps) steps, then falls as a cosine to
    min_lr_ratio * peak.
    """
    num_warmup = round(warmup_ratio * num_steps)
    if step < num_warmup:
        return peak * step / num_warmup
    progress = (step - num_warmup) / max(1, num_steps - num_warmup)
    return peak * (min_lr_ratio + (1.0 - min_lr_ratio) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress))))
