"""The prompts that a run's validations answer, as token ids under every condition."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from typing import Any

import numpy as np

from data_pipeline.errors import UserError
from data_pipeline.prepared.dataset import Manifest
from ochat_train.evaluation.held_out import HeldOutData
from ochat_train.system.pretrained import prompt_ids

_HELD_OUT_PROMPTS = 3
_LONGEST_HELD_OUT_PROMPT = 256


@dataclass(frozen=True, kw_only=True)
class SamplePrompt:
    """A prompt. text: as people read it. input_ids: condition -> token ids of the prompt under it."""

    text: str
    input_ids: Mapping[str, list[int]]


def sample_prompts(
    tokenizer: Any,
    manifest: Manifest,
    held_out: HeldOutData | None,
    *,
    texts: Sequence[str],
    max_new_tokens: int,
    pack_length: int,
) -> list[SamplePrompt]:
    """The prompts of a run, none where answers have no tokens.

    texts: what a user says in each. Without any, the beginnings of three held-out conversations are the prompts, up to
    the first answer that is trained on. Raises UserError for a text that does not fit into a pack with its answer.
    """
    prompts = [_spoken(tokenizer, text, manifest.conditions) for text in texts]
    for number, prompt in enumerate(prompts):
        length = max(map(len, prompt.input_ids.values())) + max_new_tokens
        if length > pack_length:
            raise UserError(
                f"validation.prompts.{number}",
                f"{length} tokens with the answer (validation.sample_tokens) are more than "
                f"train.pack_length_tokens {pack_length}",
                "shorten it",
            )
    if not max_new_tokens:
        return []
    if not texts and held_out is not None:
        longest = min(_LONGEST_HELD_OUT_PROMPT, pack_length - max_new_tokens)
        return list(islice(_held_out_prompts(tokenizer, held_out, longest=longest), _HELD_OUT_PROMPTS))
    return prompts


def num_answer_tokens(prompts: Sequence[SamplePrompt], *, max_new_tokens: int) -> int:
    """Tokens that the forward passes of all answers read, padding included, at most.

    Each of `max_new_tokens` passes reads every prompt with the room for its answer.
    """
    lengths = [len(ids) for prompt in prompts for ids in prompt.input_ids.values()]
    return max_new_tokens * sum(length + max_new_tokens for length in lengths)


def _spoken(tokenizer: Any, text: str, conditions: Sequence[str]) -> SamplePrompt:
    messages = [{"role": "user", "content": text}]
    ids = {
        condition: prompt_ids(tokenizer, messages, condition=condition, add_generation_prompt=True)
        for condition in conditions
    }
    return SamplePrompt(text=text, input_ids=ids)


def _held_out_prompts(tokenizer: Any, data: HeldOutData, *, longest: int) -> Iterator[SamplePrompt]:
    """Prompts of held-out conversations, at most `longest` tokens under every condition, in the order of the split.

    No text twice: several classes often answer the same questions.
    """
    seen: set[str] = set()
    candidates = np.unique(data.others.validation_row) if len(data.others) else np.arange(len(data.validation))
    for row in candidates:
        ids = _prompt_ids(data, int(row))
        if max(map(len, ids.values())) <= longest:
            own = next(iter(ids))
            text = _plain_text(tokenizer, ids[own], own)
            if text in seen:
                continue
            seen.add(text)
            ordered = {condition: ids[condition] for condition in data.manifest.conditions if condition in ids}
            yield SamplePrompt(text=text, input_ids=ordered)


def _prompt_ids(data: HeldOutData, row: int) -> dict[str, list[int]]:
    """Condition -> what is before the first supervised token of a held-out conversation; its own condition first."""
    found = [(data.validation.condition_id[row], data.validation[row])]
    for other in np.flatnonzero(data.others.validation_row == row):
        found.append((data.others.condition_id[other], data.others[int(other)]))
    prompts = {}
    for condition_id, tokens in found:
        first_supervised = int(np.argmax(tokens.loss_weights > 0))
        prompts[data.manifest.conditions[condition_id]] = tokens.input_ids[:first_supervised].tolist()
    return prompts


def _plain_text(tokenizer: Any, ids: list[int], condition: str) -> str:
    """A prompt as people read it: a line for each stretch between control tokens, without the condition."""
    special = set(tokenizer.all_special_ids)
    parts = [list(part) for is_special, part in groupby(ids, key=lambda token: token in special) if not is_special]
    text = "\n".join(tokenizer.decode(part).strip() for part in parts)
    return text.replace(f"{condition} ", "") if condition else text
