"""Answers of the model in training to a few fixed prompts, under every condition."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from ochat_train.distributed.ranks import Ranks
from ochat_train.evaluation.answers import PackedAnswerer
from ochat_train.evaluation.evaluate import Between
from ochat_train.evaluation.inputs import ValidationInputs
from ochat_train.evaluation.results import Answer
from ochat_train.system.answer_text import answer_text


def answered_prompts(
    answerer: PackedAnswerer, inputs: ValidationInputs, model: Any, ranks: Ranks, *, between: Between
) -> list[tuple[str, list[Answer]]]:
    """The text of each prompt, and its greedy answers in the order of the conditions. All ranks call it.

    between: called on all ranks between tokens.
    """
    asked = [ids for prompt in inputs.prompts for ids in prompt.input_ids.values()]
    progress = partial(between, "answering prompts")
    new = iter(answerer.answers(model, ranks, asked, max_new_tokens=inputs.sample_tokens, between=progress))
    answer = partial(_answer, inputs.tokenizer)
    return [
        (prompt.text, [answer(condition, ids, next(new)) for condition, ids in prompt.input_ids.items()])
        for prompt in inputs.prompts
    ]


def _answer(tokenizer: Any, condition: str, prompt: Sequence[int], ids: Sequence[int]) -> Answer:
    end_id = tokenizer.eos_token_id
    text = answer_text(tokenizer, ids, before=prompt[-1], stop_ids={end_id})
    return Answer(condition=condition, text=text, finished=end_id in ids)
