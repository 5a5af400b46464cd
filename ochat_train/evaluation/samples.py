"""Answers of the model in training to a few fixed prompts, under every condition.

The model answers with the forward pass of training: prompts are put side by side in one pack, each with room after it,
and every pass adds one token to each of them. That costs more per token than a cache of keys and values, but it is the
trained model itself, under every ZeRO stage and with every attention kernel, and a few short answers cost little beside
training.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

import torch

from ochat_train.distributed.ranks import Ranks
from ochat_train.evaluation.evaluate import Between, evaluation_mode, nothing_between
from ochat_train.evaluation.prompts import SamplePrompt
from ochat_train.evaluation.results import Answer
from ochat_train.model.batch import PackedBatch
from ochat_train.system.answer_text import answer_text

_LENGTH_MULTIPLE = 64
_TOKENS_BETWEEN = 8


class Sampler:
    """Answers prompts greedily, each under every condition that it is given for.

    tokenizer: a Hugging Face tokenizer, whose end-of-sequence token ends a turn. max_new_tokens: of an answer.
    compiled: whether the model's layers are compiled.
    """

    def __init__(
        self,
        tokenizer: Any,
        prompts: Sequence[SamplePrompt],
        *,
        max_new_tokens: int,
        pack_length: int,
        compiled: bool,
    ) -> None:
        self._tokenizer, self._prompts = tokenizer, prompts
        self._max_new_tokens, self._pack_length, self._compiled = max_new_tokens, pack_length, compiled

    def answers(
        self, model: Any, ranks: Ranks, *, between: Between = nothing_between
    ) -> list[tuple[str, list[Answer]]]:
        """The text of each prompt, and its answers in the order of the conditions. All ranks call it.

        between: called on all ranks between tokens.
        """
        asked = [ids for prompt in self._prompts for ids in prompt.input_ids.values()]
        answered: list[list[int]] = []
        with evaluation_mode(model, compiled=self._compiled):
            for part in self._packs(asked):
                answered += self._answer(model, part, ranks, between)
        rest = iter(answered)
        return [
            (prompt.text, [self._as_answer(condition, ids, next(rest)) for condition, ids in prompt.input_ids.items()])
            for prompt in self._prompts
        ]

    def _packs(self, prompts: Sequence[list[int]]) -> Iterator[list[list[int]]]:
        part: list[list[int]] = []
        length = 0
        for ids in prompts:
            needed = len(ids) + self._max_new_tokens
            if part and length + needed > self._pack_length:
                yield part
                part, length = [], 0
            part.append(ids)
            length += needed
        if part:
            yield part

    def _answer(self, model: Any, prompts: Sequence[list[int]], ranks: Ranks, between: Between) -> list[list[int]]:
        """New tokens of each prompt, with the end of turn where it was reached."""
        batch, starts = pack_with_room(prompts, self._max_new_tokens, ranks.device)
        end_id = self._tokenizer.eos_token_id
        new: list[list[int]] = [[] for _ in prompts]
        for number_of_token in range(self._max_new_tokens):
            if number_of_token % _TOKENS_BETWEEN == 0:
                between("answering prompts", number_of_token, self._max_new_tokens)
            unfinished = [number for number, ids in enumerate(new) if end_id not in ids]
            if not unfinished:
                break
            last = [starts[number] + len(prompts[number]) + len(new[number]) - 1 for number in unfinished]
            indices_N = torch.tensor(last, device=ranks.device)
            predicted_N = model(replace(batch, supervised_indices_N=indices_N), score=True).predicted_N
            if ranks.num_ranks > 1:  # so that all ranks end at the same token
                torch.distributed.broadcast(predicted_N, src=0)
            batch.input_ids_T[indices_N + 1] = predicted_N
            for number, token in zip(unfinished, predicted_N.tolist(), strict=True):
                new[number].append(token)
        return new

    def _as_answer(self, condition: str, prompt: Sequence[int], ids: list[int]) -> Answer:
        end_id = self._tokenizer.eos_token_id
        text = answer_text(self._tokenizer, ids, before=prompt[-1], stop_ids={end_id})
        return Answer(condition=condition, text=text, finished=end_id in ids)


def pack_with_room(prompts: Sequence[list[int]], room: int, device: torch.device) -> tuple[PackedBatch, list[int]]:
    """A pack of prompts, each with room for its answer (and one token more, which is written and never read)."""
    lengths = [len(ids) + room for ids in prompts]
    starts = [0, *accumulate(lengths)]
    length = -(-(starts[-1] + 1) // _LENGTH_MULTIPLE) * _LENGTH_MULTIPLE
    input_ids = torch.zeros(length, dtype=torch.int64)
    position_ids = torch.zeros(length, dtype=torch.int64)
    for start, size, ids in zip(starts, lengths, prompts, strict=False):
        input_ids[start : start + len(ids)] = torch.tensor(ids)
        position_ids[start : start + size] = torch.arange(size)
    position_ids[starts[-1] :] = torch.arange(length - starts[-1])
    batch = PackedBatch(
        input_ids_T=input_ids,
        position_ids_T=position_ids,
        target_ids_T=torch.zeros_like(input_ids),
        target_weights_T=torch.zeros(length),
        class_ids_T=torch.zeros_like(input_ids),
        supervised_indices_N=torch.zeros(0, dtype=torch.int64),
        cu_seqlens_S1=torch.tensor([*starts, length], dtype=torch.int32),
        max_seqlen=length,
        num_tokens=starts[-1],
    )
    return batch.to(device), starts
