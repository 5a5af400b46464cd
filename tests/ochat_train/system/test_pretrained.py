"""Prompts of answers: nothing of a conversation is left out silently, and no warning for others is printed."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import transformers

from data_pipeline.errors import UserError
from ochat_train.system.pretrained import answer_prompt_ids, load_tokenizer

USER = "{% if m.role == 'user' %}U{{ m.content }}{% endif %}"
SYSTEM = "{% if m.role == 'system' %}S{{ m.content }}{% endif %}"
MESSAGES = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}]


def tokenizer_with(template: str, folder: Path) -> Any:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = template
    return tokenizer


def test_a_system_message_that_the_template_leaves_out_is_refused(llama_tokenizer_dir: Path) -> None:
    silent = tokenizer_with("{% for m in messages %}" + USER + "{% endfor %}", llama_tokenizer_dir)
    with pytest.raises(UserError, match="shows nothing of a system message"):
        answer_prompt_ids(silent, MESSAGES, None)
    assert answer_prompt_ids(silent, MESSAGES[1:], None)
    assert answer_prompt_ids(silent, [{"role": "system", "content": " "}, MESSAGES[1]], None)
    shown = tokenizer_with("{% for m in messages %}" + SYSTEM + USER + "{% endfor %}", llama_tokenizer_dir)
    assert answer_prompt_ids(shown, MESSAGES, None) != answer_prompt_ids(shown, MESSAGES[1:], None)


def test_a_long_text_is_no_warning_of_another_library(
    llama_tokenizer_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    handler = logging.Handler()
    monkeypatch.setattr(handler, "emit", lambda record: said.append(record.getMessage()))
    logger = logging.getLogger("transformers.tokenization_utils_base")
    monkeypatch.setattr(logger, "handlers", [handler])
    monkeypatch.setattr(logger, "filters", [])
    tokenizer = transformers.AutoTokenizer.from_pretrained(llama_tokenizer_dir, model_max_length=2)
    tokenizer("one two three four")
    assert len(said) == 1, "the control: without our filter it is printed"
    tokenizer = load_tokenizer(llama_tokenizer_dir)
    tokenizer.model_max_length = 2
    tokenizer("one two three four")
    load_tokenizer(llama_tokenizer_dir)
    assert (len(said), len(logger.filters)) == (1, 1)
    logger.warning("anything else")
    assert len(said) == 2
