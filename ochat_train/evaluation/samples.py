"""Answers of the model in training to a few fixed prompts, under every condition."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from ochat_train.distributed.ranks import Ranks
from ochat_train.evaluation.answers import PackedAnswerer
from ochat_train.evaluation.evaluate import Between, nothing_between
from ochat_train.evaluation.prompts import SamplePrompt
from ochat_train.evaluation.results import Answer
from ochat_train.system.answer_text import answer_text


class Sampler:
    """Answers prompts greedily, each under every condition that it is given for.

    tokenizer: a Hugging Face tokenizer, whose end-of-sequence token ends a turn. max_new_tokens: of an answer.
    compiled: whether the model's layers are compiled.
    """

    def __init__(
        self, tokenizer: Any, prompts: Sequence[SamplePrompt], *, max_new_tokens: int, pack_length: int, compiled: bool
    ) -> None:
        self._tokenizer, self._prompts, self._max_new_tokens = tokenizer, prompts, max_new_tokens
        self._answerer = PackedAnswerer(end_id=tokenizer.eos_token_id, pack_length=pack_length, compiled=compiled)

    def answers(
        self, model: Any, ranks: Ranks, *, between: Between = nothing_between
    ) -> list[tuple[str, list[Answer]]]:
        """The text of each prompt, and its answers in the order of the conditions. All ranks call it.

        between: called on all ranks between tokens.
        """
        asked = [ids for prompt in self._prompts for ids in prompt.input_ids.values()]
        progress = partial(between, "answering prompts")
        new = iter(self._answerer.answers(model, ranks, asked, max_new_tokens=self._max_new_tokens, between=progress))
        return [
            (prompt.text, [self._as_answer(condition, ids, next(new)) for condition, ids in prompt.input_ids.items()])
            for prompt in self._prompts
        ]

    def _as_answer(self, condition: str, prompt: Sequence[int], ids: list[int]) -> Answer:
        end_id = self._tokenizer.eos_token_id
        text = answer_text(self._tokenizer, ids, before=prompt[-1], stop_ids={end_id})
        return Answer(condition=condition, text=text, finished=end_id in ids)
