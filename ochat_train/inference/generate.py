"""Answers of a model in memory, all at once: `ochat generate`, and the scores of ablations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from data_pipeline.errors import UserError
from data_pipeline.text_rules import quoted
from ochat_train.export.layout import read_mark, trained_conditions
from ochat_train.inference.load import load_model
from ochat_train.inference.served_model import GENERATION_CONFIG, check_chat_template
from ochat_train.system.answer_text import answer_text
from ochat_train.system.pretrained import load_tokenizer, prompt_ids, reason_of

_AGAIN = "export the run again"

Messages = Sequence[dict[str, str]]


def load_generator(folder: Path, *, base: str | None = None) -> Generator:
    """An exported model, or an adapter with its base, ready to answer, on a GPU if there is one.

    base: of an adapter, None for the one that it names. Raises UserError for a folder without a model or without a
    chat template.
    """
    generator = Generator(*load_model(folder, base=base))
    check_chat_template(generator.tokenizer, folder)
    generator.check_settings(folder)
    return generator


def unknown_condition_text(folder: Path, condition: str) -> str | None:
    """A warning for a condition that an export was not trained under; None if it was, or if the export does not say."""
    trained = trained_conditions(read_mark(folder))
    if not trained or condition in trained:
        return None
    return f"no class was trained under the condition {quoted(condition)}; trained: {', '.join(map(quoted, trained))}"


class Generator:
    """Answers of a causal LM of `transformers`, with the tokenizer and chat template of an export or a run."""

    def __init__(self, model: Any, tokenizer_dir: Path) -> None:
        self.tokenizer: Any = load_tokenizer(tokenizer_dir)
        self._model, self._device = model, model.device
        named = getattr(model.generation_config, "eos_token_id", None)
        self._stop_ids = {self.tokenizer.eos_token_id, *(named if isinstance(named, list) else [named])}

    @torch.inference_mode()
    def answers(
        self, conversations: Sequence[Messages], *, condition: str | None, max_new_tokens: int, temperature: float
    ) -> list[str]:
        """One answer for each conversation, a list of messages (`role`, `content`).

        condition: None for the export's default. temperature: 0 for greedy.
        """
        variables = {} if condition is None else {"condition": condition}
        prompts = [
            prompt_ids(self.tokenizer, messages, add_generation_prompt=True, **variables) for messages in conversations
        ]
        width = max(map(len, prompts))
        pad = self.tokenizer.pad_token_id
        input_ids = torch.tensor([[pad] * (width - len(prompt)) + prompt for prompt in prompts], device=self._device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=self._device)
        sampling = {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
        output = self._model.generate(
            input_ids, attention_mask=mask, max_new_tokens=max_new_tokens, trust_remote_code=False, **sampling
        )
        return [
            answer_text(self.tokenizer, row[width:].tolist(), before=prompt[-1], stop_ids=self._stop_ids)
            for prompt, row in zip(prompts, output, strict=True)
        ]

    def check_settings(self, folder: Path) -> None:
        """Raise UserError for settings of `generation_config.json` that do not work: one token is generated with
        them.
        """
        ids = torch.zeros((1, 1), dtype=torch.int64, device=self._device)
        try:
            self._model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=1, do_sample=False, trust_remote_code=False
            )
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # any kind, where a value has another type than expected
            problem = f"its settings do not work: {type(error).__name__}: {reason_of(error)}"
            raise UserError(folder / GENERATION_CONFIG, problem, _AGAIN) from None
