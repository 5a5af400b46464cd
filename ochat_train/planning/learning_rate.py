"""Learning rates: the rules for the peak, and the schedule. Pure functions."""

from __future__ import annotations

import math
from dataclasses import dataclass

from data_pipeline.errors import UserError
from ochat_train.model.families import family_of
from ochat_train.planning.published_rates import PUBLISHED_RATES

BASE_LEARNING_RATE = 3e-4  # of Llama-2, at so many supervised tokens a step
BASE_TOKENS_PER_STEP = 4e6
# Where OpenChat has no constant: that of Mistral, at Mistral's width.
WIDTH_RULE_LEARNING_RATE = 5e-5
WIDTH_RULE_HIDDEN_SIZE = 4096
ADAPTER_LEARNING_RATE = 2e-4  # at that width
# Supervised tokens a step, fewest and most, of the published runs that the rules were compared with
# (published_rates.py). Outside, a step counts as the nearest of the two: 560 tokens would give a twentieth of any rate
# that somebody has used.
FEWEST_TOKENS, MOST_TOKENS = 32_000, 8_388_608
_LIKE_WIDTH = 1.5  # published rates of bases up to so many times wider or narrower are named beside the value
FIRST_RULE, BOUNDED_RULE = 1, 2  # how checkpoints name the rule that a run was begun with: without bounds, and with


@dataclass(frozen=True, kw_only=True)
class PeakLearningRate:
    """The highest learning rate of a run. rule: what gave the value, for people; None where the recipe names it.

    usual: the lowest and highest published rate of bases of like width, None where there is none.
    """

    value: float
    rule: str | None = None
    usual: tuple[float, float] | None = None

    def __str__(self) -> str:
        return f"{self.value:.4g}" + (f" ({self.rule}{self.usual_text})" if self.rule else "")

    @property
    def usual_text(self) -> str:
        """What is usual for the base, as the end of a sentence; empty where nothing is known."""
        return f"; published at like width: {self.usual[0]:.4g} to {self.usual[1]:.4g}" if self.usual else ""


def auto_learning_rate(
    *,
    model_type: str,
    vocab_size: int | None,
    hidden_size: int | None,
    supervised_tokens_per_step: float,
    rule: int = BOUNDED_RULE,
) -> PeakLearningRate:
    """Peak learning rate for `auto`: `base * sqrt(supervised tokens per step / 4e6)`.

    base: OpenChat's constant for the family (3e-4 / divisor, `families.FAMILIES`). Where it has none, 5e-5 * 4096 /
    hidden_size: Mistral's, divided by the width. Updates of Adam have a size that does not depend on the gradient's, so
    a layer's output changes with learning rate * width; keeping that constant is the rule of muP (arXiv 2203.03466)
    for hidden matrices. docs/bases.md compares it with published rates and says where it does not hold.

    The tokens are taken as FEWEST_TOKENS where they are fewer, as MOST_TOKENS where they are more.

    model_type, vocab_size, hidden_size are those of the base's `config.json` (of its text part). rule:
    FIRST_RULE has no such bounds, for runs that were begun before there were any. Raises UserError where the rule needs
    the width and the config has none.
    """
    family = family_of(model_type, vocab_size)
    tokens, bound = supervised_tokens_per_step, ""
    if rule != FIRST_RULE and not FEWEST_TOKENS <= tokens <= MOST_TOKENS:
        nearest = min(max(tokens, FEWEST_TOKENS), MOST_TOKENS)
        bound = f"; {tokens:,.0f} supervised tokens a step count as {nearest:,}, where the rule ends"
        tokens = nearest
    scale, usual = math.sqrt(tokens / BASE_TOKENS_PER_STEP), usual_rates(hidden_size)
    if family is not None and family.learning_rate_divisor is not None:
        whose = family.learning_rate_of or family.title
        text = f"OpenChat's rule for {whose}: 3e-4 / {family.learning_rate_divisor:g}"
        if family.learning_rate_of:
            text += f", taken for {family.title}"
        value = BASE_LEARNING_RATE / family.learning_rate_divisor * scale
        return PeakLearningRate(value=value, rule=text + bound, usual=usual)
    width = _width(hidden_size, model_type)
    base = WIDTH_RULE_LEARNING_RATE * WIDTH_RULE_HIDDEN_SIZE / width
    whose = f"{family.title}" if family else f"`{model_type}`"
    text = f"rule by width for {whose}: 5e-5 * 4096 / {width}"
    return PeakLearningRate(value=base * scale, rule=text + bound, usual=usual)


def usual_rates(hidden_size: int | None) -> tuple[float, float] | None:
    """The lowest and the highest published rate of bases of like width; None where there is none."""
    if not isinstance(hidden_size, int) or hidden_size < 1:
        return None
    near = (1 / _LIKE_WIDTH, _LIKE_WIDTH)
    rates = [row.rate for row in PUBLISHED_RATES if near[0] <= row.hidden_size / hidden_size <= near[1]]
    return (min(rates), max(rates)) if rates else None


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
