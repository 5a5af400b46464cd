"""A quick look at an export: one prompt, one condition, greedy or sampled."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from data_pipeline.errors import UserError
from data_pipeline.text_rules import quoted
from ochat_train.adapter.folder import is_adapter
from ochat_train.export.layout import EXPORT_MARK
from ochat_train.inference.adapted import load_with_base
from ochat_train.model.base_class import load_exported
from ochat_train.system.library_output import quiet_libraries
from ochat_train.system.pretrained import load_tokenizer, prompt_ids, reason_of

_AGAIN = "export the run again"

Messages = Sequence[dict[str, str]]


def load_generator(folder: Path, *, base: str | None = None) -> Generator:
    """An exported model, or an adapter with its base, ready to answer, on a GPU if there is one.

    base: of an adapter, None for the one that it names. Raises UserError for a folder without a model.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    quiet_libraries()
    if is_adapter(folder):
        generator = Generator(*load_with_base(folder, base=base, device=device))
    else:
        if not (folder / "config.json").is_file():
            raise UserError(folder, "not an exported model (config.json is missing)", "name a folder of `ochat export`")
        if base is not None:
            raise UserError(f"--base {base}", f"{folder} holds a whole model, and no adapter", "leave it out")
        generator = Generator(load_exported(folder).to(device), folder)
    generator.check_settings(folder)
    return generator


def answer_prompt(
    folder: Path,
    prompt: str,
    *,
    system: str,
    condition: str | None,
    max_new_tokens: int,
    temperature: float,
    base: str | None = None,
) -> str:
    """The answer of an exported model to one message of a user. system: empty for none; condition: None for the
    export's own; temperature: 0 for greedy; base: as in `load_generator`.

    Raises UserError where the folder is not an export.
    """
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": prompt})
    [answer] = load_generator(folder, base=base).answers(
        [messages], condition=condition, max_new_tokens=max_new_tokens, temperature=temperature
    )
    return answer


def unknown_condition_text(folder: Path, condition: str) -> str | None:
    """A warning for a condition that an export was not trained under; None if it was, or if the export does not say."""
    try:
        classes = json.loads((folder / EXPORT_MARK).read_text(encoding="utf-8"))["classes"]
        trained = list(dict.fromkeys(row["condition"] for row in classes))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if condition in trained:
        return None
    return f"no class was trained under the condition {quoted(condition)}; trained: {', '.join(map(quoted, trained))}"


class Generator:
    """Answers of a causal LM of `transformers`, with the tokenizer and chat template of an export or a run."""

    def __init__(self, model: Any, tokenizer_dir: Path) -> None:
        self.tokenizer: Any = load_tokenizer(tokenizer_dir)
        self._model, self._device = model, model.device

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
        return [self._text(row[width:].tolist()) for row in output]

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
            raise UserError(folder / "generation_config.json", problem, _AGAIN) from None

    def _text(self, ids: list[int]) -> str:
        """The text of an answer, up to the end of turn and without the space that begins every message."""
        end = self.tokenizer.eos_token_id
        ids = ids[: ids.index(end)] if end in ids else ids
        return str(self.tokenizer.decode(ids, skip_special_tokens=True)).removeprefix(" ")
