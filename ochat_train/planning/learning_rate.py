"""Learning rates: the rules for the peak, and the schedule. Pure functions."""

from __future__ import annotations

import math
from dataclasses import dataclass

from data_pipeline.errors import UserError
from ochat_train.model.families import family_of

BASE_LEARNING_RATE = 3e-4  # of Llama-2, at so many supervised tokens a step
BASE_TOKENS_PER_STEP = 4e6
# Where OpenChat has no constant: that of Mistral, at Mistral's width.
WIDTH_RULE_LEARNING_RATE = 5e-5
WIDTH_RULE_HIDDEN_SIZE = 4096
ADAPTER_LEARNING_RATE = 2e-4  # at that width


@dataclass(frozen=True, kw_only=True)
class PeakLearningRate:
    """The highest learning rate of a run. rule: what gave the value, for people; None where the recipe names it."""

    value: float
    rule: str | None = None

    def __str__(self) -> str:
        return f"{self.value:.4g}" + (f" ({self.rule})" if self.rule else "")


def auto_learning_rate(
    *, model_type: str, vocab_size: int | None, hidden_size: int | None, supervised_tokens_per_step: float
) -> PeakLearningRate:
    """Peak learning rate for `auto`: `base * sqrt(supervised tokens per step / 4e6)`.

    base: OpenChat's constant for the family (3e-4 / divisor, `families.FAMILIES`). Where it has none, 5e-5 * 4096 /
    hidden_size: Mistral's, divided by the width. Updates of Adam have a size that does not depend on the gradient's, so
    a layer's output changes with learning rate * width; keeping that constant is the rule of muP (arXiv 2203.03466)
    for hidden matrices. docs/bases.md compares it with published rates and says where it does not hold.

    model_type, vocab_size, hidden_size are those of the base's `config.json` (of its text part).
    Raises UserError where the rule needs the width and the config has none.
    """
    family = family_of(model_type, vocab_size)
    scale = math.sqrt(supervised_tokens_per_step / BASE_TOKENS_PER_STEP)
    if family is not None and family.learning_rate_divisor is not None:
        whose = family.learning_rate_of or family.title
        rule = f"OpenChat's rule for {whose}: 3e-4 / {family.learning_rate_divisor:g}"
        if family.learning_rate_of:
            rule += f", taken for {family.title}"
        return PeakLearningRate(value=BASE_LEARNING_RATE / family.learning_rate_divisor * scale, rule=rule)
    width = _width(hidden_size, model_type)
    base = WIDTH_RULE_LEARNING_RATE * WIDTH_RULE_HIDDEN_SIZE / width
    whose = f"{family.title}" if family else f"`{model_type}`"
    rule = f"rule by width for {whose}: 5e-5 * 4096 / {width}"
    return PeakLearningRate(value=base * scale, rule=rule)


def auto_adapter_rate(*, model_type: str, hidden_size: int | None) -> PeakLearningRate:
    """Peak learning rate for `auto` with an adapter: `2e-4 * 4096 / hidden_size`, whatever the step's tokens.

    2e-4 is what QLoRA took for 7B and 13B, with 1e-4 for 33B and 65B (arXiv 2305.14314), and what the alignment
    handbook takes for Mistral-7B: about ten times the rate of full training, as Schulman et al. found best ("LoRA
    Without Regret", 2025). The best rate hardly depends on the rank, because B A x is divided by it. It falls with the
    width, as for all weights (`auto_learning_rate`). Published rates are alike for 16 to 128 conversations a step, so
    its tokens are not in the rule. docs/adapters.md compares it with published rates.

    Raises UserError where the config has no width.
    """
    width = _width(hidden_size, model_type)
    rate = ADAPTER_LEARNING_RATE * WIDTH_RULE_HIDDEN_SIZE / width
    return PeakLearningRate(value=rate, rule=f"rule for adapters by width: 2e-4 * 4096 / {width}")


def _width(hidden_size: int | None, model_type: str) -> int:
    """hidden_size: of a `config.json`. Raises UserError where it has none."""
    if isinstance(hidden_size, int) and hidden_size >= 1:
        return hidden_size
    raise UserError(
        "optimizer.learning_rate",
        f"`auto` needs the base's hidden_size, and the configuration of `{model_type}` has none",
        "give a number",
    )


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
