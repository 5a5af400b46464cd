"""Answers of a model in memory, all at once: `ochat generate`, and the scores of ablations."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from data_pipeline.errors import UserError
from data_pipeline.text_rules import quoted
from ochat_train.export.layout import answerable_conditions, read_mark
from ochat_train.inference.engine import SMALLEST_TEMPERATURE
from ochat_train.inference.load import load_model
from ochat_train.inference.served_model import check_chat_template, stop_ids_of, tokens_made_for
from ochat_train.system.answer_text import answer_text
from ochat_train.system.pretrained import answer_prompt_ids, load_tokenizer

Messages = Sequence[dict[str, str]]


def load_generator(folder: Path, *, base: str | None = None) -> Generator:
    """An exported model, or an adapter with its base, ready to answer, on a GPU if there is one.

    base: of an adapter, None for the one that it names. Raises UserError for a folder without a model or without a
    chat template.
    """
    generator = Generator(*load_model(folder, base=base))
    check_chat_template(generator.tokenizer, folder)
    stop_ids_of(folder, generator.tokenizer)  # a damaged one is explained as by `ochat serve`
    forget_settings(generator._model)
    return generator


def forget_settings(model: Any) -> None:
    """Nothing of generation_config.json enters an answer but what is asked for. A repetition penalty of a base, for
    example, would change greedy answers, and only those of the engines that read it.
    """
    from transformers import GenerationConfig

    for part in (model, model.get_base_model() if hasattr(model, "get_base_model") else model):
        part.generation_config = GenerationConfig()


def check_conditions(folder: Path, conditions: Iterable[str | None]) -> None:
    """Raise UserError for a condition that an export was not trained under, where the export says which were."""
    trained = answerable_conditions(read_mark(folder))
    for condition in conditions:
        if trained and condition is not None and condition not in trained:
            problem = f"no class was trained under {quoted(condition)}; trained: {', '.join(map(quoted, trained))}"
            raise UserError("--condition", problem, "use one of these, or allow others with `--any-condition`")


class Generator:
    """Answers of a causal LM of `transformers`, with the tokenizer and chat template of an export or a run."""

    def __init__(self, model: Any, tokenizer_dir: Path) -> None:
        self.tokenizer: Any = load_tokenizer(tokenizer_dir)
        self._model, self._device = model, model.device
        named = getattr(model.generation_config, "eos_token_id", None)
        self._stop_ids = {self.tokenizer.eos_token_id, *(named if isinstance(named, list) else [named])} - {None}
        self._context_tokens = tokens_made_for(model.config, self.tokenizer)

    @torch.inference_mode()
    def answers(
        self, conversations: Sequence[Messages], *, condition: str | None, max_new_tokens: int, temperature: float
    ) -> list[str]:
        """One answer for each conversation, a list of messages (`role`, `content`).

        condition: None for the export's default. temperature: 0 for greedy. Raises UserError for a prompt that leaves
        no room for an answer. One that leaves less than `max_new_tokens` is answered with as many as fit.
        """
        prompts = [answer_prompt_ids(self.tokenizer, messages, condition) for messages in conversations]
        room = min(self._room(prompt) for prompt in prompts)
        if room >= max_new_tokens:
            return self._answers(prompts, max_new_tokens=max_new_tokens, temperature=temperature)
        return [  # one at a time, so that a long prompt does not shorten the answers to others
            self._answers([prompt], max_new_tokens=min(max_new_tokens, self._room(prompt)), temperature=temperature)[0]
            for prompt in prompts
        ]

    def _room(self, prompt_ids: Sequence[int]) -> int:
        """How many tokens an answer may have. Raises UserError for none."""
        if self._context_tokens is None:
            return sys.maxsize
        if len(prompt_ids) >= self._context_tokens:
            problem = f"a prompt has {len(prompt_ids):,} tokens, and the model was made for {self._context_tokens:,}"
            raise UserError(self.tokenizer.name_or_path, f"{problem}, with its answer", "ask for less")
        return self._context_tokens - len(prompt_ids)

    def _answers(self, prompts: Sequence[list[int]], *, max_new_tokens: int, temperature: float) -> list[str]:
        width = max(map(len, prompts))
        pad = self.tokenizer.pad_token_id
        input_ids = torch.tensor([[pad] * (width - len(prompt)) + prompt for prompt in prompts], device=self._device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=self._device)
        sampling: dict[str, Any] = {"do_sample": False}
        if temperature >= SMALLEST_TEMPERATURE:
            sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
        output = self._model.generate(
            input_ids,
            attention_mask=mask,
            max_new_tokens=max_new_tokens,
            pad_token_id=pad,
            eos_token_id=sorted(self._stop_ids),
            trust_remote_code=False,
            **sampling,
        )
        return [
            answer_text(self.tokenizer, row[width:].tolist(), before=prompt[-1], stop_ids=self._stop_ids)
            for prompt, row in zip(prompts, output, strict=True)
        ]
