"""Greedy answers of the model in training to many prompts, shared out among all ranks.

The model answers with the forward pass of training: prompts are put side by side in one pack, each with room after it,
and every pass adds one token to each of them. That costs more per token than a cache of keys and values, but it is the
trained model itself, under every ZeRO stage and with every attention kernel.

Answers grow in blocks: after each block of tokens the prompts that have ended are left out, and the others are packed
again. Packs do not depend on the number of ranks, and a pack is read by one rank alone, so the answers do not either.

No random number is drawn, and nothing of the training changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import accumulate
from typing import Any

import torch

from ochat_train.distributed.ranks import Ranks, on_any_rank
from ochat_train.evaluation.evaluate import evaluation_mode
from ochat_train.model.batch import PackedBatch

_LENGTH_MULTIPLE = 64
_BLOCK = 32  # tokens of an answer between two packings
_TOKENS_BETWEEN = 8  # tokens of an answer between two calls of `between`


class PackedAnswerer:
    """Answers prompts greedily. end_id: the token that ends a turn. pack_length: of a pack, which has to hold a prompt
    with its answer. compiled: whether the model's layers are compiled.
    """

    def __init__(self, *, end_id: int, pack_length: int, compiled: bool) -> None:
        self._end_id, self._pack_length, self._compiled = end_id, pack_length, compiled

    def answers(
        self,
        model: Any,
        ranks: Ranks,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        between: Callable[[int, int], None] = lambda done, total: None,
    ) -> list[list[int]]:
        """The new tokens of each prompt, with the end of turn where it was reached; all ranks call it and get the same.

        between: called on all ranks together after some tokens, with those that answers had before their block, and may
        have. What it raises ends the answers.
        """
        new: list[list[int]] = [[] for _ in prompts]
        with evaluation_mode(model, compiled=self._compiled):
            for start in range(0, max_new_tokens, _BLOCK):
                waiting = [number for number, ids in enumerate(new) if self._end_id not in ids]
                if not waiting:
                    break
                room = min(_BLOCK, max_new_tokens - start)
                texts = [[*prompts[number], *new[number]] for number in waiting]
                progress = partial(between, start, max_new_tokens)
                for number, ids in zip(waiting, self._block(model, ranks, texts, room, progress), strict=True):
                    new[number] += ids
        return new

    def _block(
        self, model: Any, ranks: Ranks, texts: Sequence[Sequence[int]], room: int, progress: Callable[[], None]
    ) -> list[list[int]]:
        """At most `room` more tokens of each text."""
        found = torch.zeros(len(texts), room, dtype=torch.int64, device=ranks.device)  # id + 1; 0: no token
        packs = list(self._packs(texts, room))
        for first in range(0, len(packs), ranks.num_ranks):
            number = first + ranks.rank
            mine = packs[number] if number < len(packs) else []
            read = [texts[text] for text in mine]
            for text, ids in zip(mine, self._decode(model, ranks, read, room, progress), strict=True):
                found[text, : len(ids)] = torch.tensor(ids, device=ranks.device) + 1
        if ranks.num_ranks > 1:
            torch.distributed.all_reduce(found)
        return [[token - 1 for token in row if token] for row in found.tolist()]

    def _packs(self, texts: Sequence[Sequence[int]], room: int) -> Iterator[list[int]]:
        """Numbers of texts, as many as fit into a pack with the room for their answers."""
        part: list[int] = []
        length = 1  # a pack has one token more, which is written and never read
        for number, ids in enumerate(texts):
            needed = len(ids) + room
            if part and length + needed > self._pack_length:
                yield part
                part, length = [], 1
            part.append(number)
            length += needed
        if part:
            yield part

    def _decode(
        self, model: Any, ranks: Ranks, texts: Sequence[Sequence[int]], room: int, progress: Callable[[], None]
    ) -> list[list[int]]:
        """The tokens of one pack. Under ZeRO-3 the ranks gather weights together, so all of them make as many forward
        passes as the one with the longest answer; a rank without texts reads a pack of one token.
        """
        read = [list(ids) for ids in texts] or [[self._end_id]]
        batch, starts = _pack_with_room(read, room, ranks.device)
        new: list[list[int]] = [[] for _ in texts]
        for num_new in range(room):
            if num_new % _TOKENS_BETWEEN == 0:
                progress()
            unfinished = [number for number, ids in enumerate(new) if self._end_id not in ids]
            if not on_any_rank(ranks, bool(unfinished)):
                break
            last = [starts[number] + len(read[number]) + len(new[number]) - 1 for number in unfinished]
            indices_N = torch.tensor(last or [0], device=ranks.device)
            predicted_N = model(replace(batch, supervised_indices_N=indices_N), score=True).predicted_N
            if unfinished:
                batch.input_ids_T[indices_N + 1] = predicted_N
                for number, token in zip(unfinished, predicted_N.tolist(), strict=True):
                    new[number].append(token)
        return new


def num_tokens_read(prompt_length: int, *, max_new_tokens: int) -> int:
    """Tokens that the forward passes of one answer read, at most."""
    starts = range(0, max_new_tokens, _BLOCK)
    rooms = [min(_BLOCK, max_new_tokens - start) for start in starts]
    return sum(room * (prompt_length + start + room) for start, room in zip(starts, rooms, strict=True))


def _pack_with_room(prompts: Sequence[list[int]], room: int, device: torch.device) -> tuple[PackedBatch, list[int]]:
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
