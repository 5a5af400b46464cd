"""An export with random weights, made in milliseconds: what engines and servers need of one, and nothing trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers

from tests.support.small_recipe import TINY_MODEL

CONDITIONS = ("GPT4 Correct", "GPT3")
END_OF_TURN = "<|end_of_turn|>"
CHAT_TEMPLATE = (
    "{%- set condition = condition if condition is defined else 'GPT4 Correct' -%}{{ bos_token }}"
    "{%- for message in messages -%}"
    "{%- if message.role == 'system' -%}{{ message.content + eos_token }}"
    "{%- elif message.role in ('user', 'assistant') -%}"
    "{{ condition + ' ' + message.role | title + ': ' + message.content + eos_token }}"
    "{%- else -%}{{ raise_exception('no role ' + message.role) }}{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ condition + ' Assistant:' }}{%- endif -%}"
)


def write_tiny_export(
    folder: Path,
    tokenizer_dir: Path,
    *,
    stop_ids: tuple[int, ...] = (),
    dtype: torch.dtype = torch.float32,
    **config: Any,
) -> Path:
    """Random weights that are large enough for answers to depend on the whole prompt. stop_ids: beside the end of
    turn. config: changes of the model's configuration.
    """
    tokenizer = transformers.AutoTokenizer.from_pretrained(tokenizer_dir)
    tokenizer.add_special_tokens({"eos_token": END_OF_TURN})
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.pad_token = END_OF_TURN
    values = {**TINY_MODEL, "vocab_size": len(tokenizer), "initializer_range": 0.3, **config}
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**values), dtype=dtype)
    ids = [tokenizer.eos_token_id, *stop_ids]
    model.generation_config = transformers.GenerationConfig(
        do_sample=False,
        eos_token_id=ids if stop_ids else ids[0],
        pad_token_id=ids[0],
        bos_token_id=tokenizer.bos_token_id,
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    mark = {
        "inference_condition": CONDITIONS[0],
        "classes": [{"name": name, "condition": name} for name in (*CONDITIONS, CONDITIONS[0])],
        "recipe": {"name": "tiny"},
    }
    (folder / "ochat.json").write_text(json.dumps(mark), encoding="utf-8")
    return folder
