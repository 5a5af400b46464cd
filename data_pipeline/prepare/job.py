"""What is to be prepared: everything that a worker process has to know."""

from __future__ import annotations

from dataclasses import dataclass, field

from data_pipeline.classes.rewards import RewardFacts
from data_pipeline.prompt.prompt_format import AnyTemplate
from data_pipeline.prompt.tokenization import TokenizerSpec
from data_pipeline.settings.data import DataSettings


@dataclass(frozen=True, kw_only=True)
class PrepareJob:
    """Everything that decides the rows of a prepared dataset."""

    data: DataSettings
    template: AnyTemplate
    tokenizer: TokenizerSpec
    max_length_tokens: int
    seed: int  # decides which prompts are held out
    inference_condition: str | None = None  # None: inference_condition.py chooses
    rewards: RewardFacts = field(default_factory=lambda: RewardFacts(baselines={}))  # found by survey.py
