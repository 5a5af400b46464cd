"""Answers of the model in training to a few fixed prompts, under every condition.

The model answers with the forward pass of training: prompts stand side by side in one pack, each with room behind it,
and every pass adds one token to all of them. That costs more per token than a cache of keys and values, but it is the
model itself, under every ZeRO stage and with every attention kernel, and a few short answers are cheap beside training.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import accumulate, groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_pipeline.errors import UserError
from data_pipeline.prepared.dataset import TOKENIZER_FOLDER, Manifest
from ochat_train.distributed.ranks import Ranks
from ochat_train.evaluation.evaluate import HeldOutData
from ochat_train.model.batch import PackedBatch

_HELD_OUT_PROMPTS = 3
_LONGEST_HELD_OUT_PROMPT = 256
_LENGTH_MULTIPLE = 64


@dataclass(frozen=True, kw_only=True)
class SamplePrompt:
    """A prompt in tokens, for each condition. text: as people read it."""

    text: str
    input_ids: dict[str, list[int]]


class Sampler:
    """Fixed prompts, asked under every condition of the prepared dataset, greedily.

    prompts: what a user says; without any, the first turns of three held-out conversations (with what stands before
    them).
    Raises UserError for a prompt that does not fit into a pack with its answer.
    """

    def __init__(
        self,
        prepared_dir: Path,
        manifest: Manifest,
        data: HeldOutData | None,
        *,
        prompts: Sequence[str],
        max_new_tokens: int,
        pack_length: int,
        compiled: bool,
    ) -> None:
        import transformers

        self._tokenizer: Any = transformers.AutoTokenizer.from_pretrained(prepared_dir / TOKENIZER_FOLDER)
        self._max_new_tokens, self._pack_length, self._compiled = max_new_tokens, pack_length, compiled
        self.prompts = [self._spoken(text, manifest.conditions) for text in prompts]
        for number, prompt in enumerate(self.prompts):
            length = max(map(len, prompt.input_ids.values())) + max_new_tokens
            if length > pack_length:
                raise UserError(
                    f"validation.prompts.{number}",
                    f"{length} tokens with the answer (validation.sample_tokens) are more than "
                    f"train.pack_length_tokens {pack_length}",
                    "shorten it",
                )
        if not prompts and data is not None:
            self.prompts = list(self._held_out(data))
        if not max_new_tokens:
            self.prompts = []

    @property
    def num_tokens(self) -> int:
        """Tokens that all forward passes of `answers` read, padding included, at most."""
        return self._max_new_tokens * sum(
            len(ids) + self._max_new_tokens for prompt in self.prompts for ids in prompt.input_ids.values()
        )

    def _spoken(self, text: str, conditions: Sequence[str]) -> SamplePrompt:
        messages = [{"role": "user", "content": text}]
        return SamplePrompt(
            text=text,
            input_ids={
                condition: self._tokenizer.apply_chat_template(
                    messages, condition=condition, add_generation_prompt=True, return_dict=False
                )
                for condition in conditions
            },
        )

    def _held_out(self, data: HeldOutData) -> Iterator[SamplePrompt]:
        conditions, longest = (
            data.manifest.conditions,
            min(_LONGEST_HELD_OUT_PROMPT, self._pack_length - self._max_new_tokens),
        )
        candidates = np.unique(data.others.validation_row) if len(data.others) else np.arange(len(data.validation))
        taken = 0
        for row in candidates:
            tokens = [(int(data.validation.condition_id[row]), data.validation[int(row)])]
            tokens += [
                (int(data.others.condition_id[other]), data.others[int(other)])
                for other in np.flatnonzero(data.others.validation_row == row)
            ]
            ids = {
                conditions[number]: t.input_ids[: int(np.argmax(t.loss_weights > 0))].tolist() for number, t in tokens
            }
            if max(map(len, ids.values())) > longest or taken == _HELD_OUT_PROMPTS:
                continue
            taken += 1
            own = next(iter(ids))
            yield SamplePrompt(
                text=self._plain_text(ids[own], own), input_ids={c: ids[c] for c in conditions if c in ids}
            )

    def _plain_text(self, ids: list[int], condition: str) -> str:
        """A prompt as people read it: a line for each stretch between control tokens, without the condition."""
        special = set(self._tokenizer.all_special_ids)
        parts = [list(part) for is_special, part in groupby(ids, key=lambda token: token in special) if not is_special]
        text = "\n".join(self._tokenizer.decode(part).strip() for part in parts)
        return text.replace(f"{condition} ", "") if condition else text

    def answers(self, model: Any, ranks: Ranks) -> list[dict[str, Any]]:
        """Rows of samples.jsonl, without the step; all ranks call it. `answers`: `condition`, `text` and `finished` of
        each.
        """
        asked = [(prompt, condition, ids) for prompt in self.prompts for condition, ids in prompt.input_ids.items()]
        was_training = model.training
        model.eval()
        # shapes differ from those of training, and compiling them would take longer than the answers do
        eager = torch.compiler.set_stance("force_eager") if self._compiled else nullcontext()
        try:
            with torch.no_grad(), eager:
                answers = [
                    ids
                    for part in self._packs([ids for _, _, ids in asked])
                    for ids in self._answer(model, part, ranks)
                ]
        finally:
            model.train(was_training)
        by_prompt: dict[int, list[dict[str, Any]]] = {id(prompt): [] for prompt in self.prompts}
        for (prompt, condition, _), ids in zip(asked, answers, strict=True):
            by_prompt[id(prompt)].append({"condition": condition, **self._as_text(ids)})
        return [{"prompt": prompt.text, "answers": by_prompt[id(prompt)]} for prompt in self.prompts]

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

    def _answer(self, model: Any, prompts: Sequence[list[int]], ranks: Ranks) -> list[list[int]]:
        """New tokens of each prompt, with the end of turn where it was reached."""
        batch, starts = _layout(prompts, self._max_new_tokens, ranks.device)
        end_id = self._tokenizer.eos_token_id
        new: list[list[int]] = [[] for _ in prompts]
        for _ in range(self._max_new_tokens):
            going = [number for number, ids in enumerate(new) if end_id not in ids]
            if not going:
                break
            last = [starts[number] + len(prompts[number]) + len(new[number]) - 1 for number in going]
            rows_N = torch.tensor(last, device=ranks.device)
            predicted_N = model(_asking(batch, rows_N), score=True).predicted_N
            if ranks.num_ranks > 1:  # so that all ranks end at the same token
                torch.distributed.broadcast(predicted_N, src=0)
            batch.input_ids_T[rows_N + 1] = predicted_N
            for number, token in zip(going, predicted_N.tolist(), strict=True):
                new[number].append(token)
        return new

    def _as_text(self, ids: list[int]) -> dict[str, Any]:
        finished = self._tokenizer.eos_token_id in ids
        return {
            "text": str(self._tokenizer.decode(ids[:-1] if finished else ids, skip_special_tokens=True)).removeprefix(
                " "
            ),
            "finished": finished,
        }


def _layout(prompts: Sequence[list[int]], room: int, device: torch.device) -> tuple[PackedBatch, list[int]]:
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
        supervised_rows_N=torch.zeros(0, dtype=torch.int64),
        cu_seqlens_S1=torch.tensor([*starts, length], dtype=torch.int32),
        max_seqlen=length,
        num_tokens=starts[-1],
    )
    return batch.to(device), starts


def _asking(batch: PackedBatch, rows_N: torch.Tensor) -> PackedBatch:
    return replace(batch, supervised_rows_N=rows_N)
