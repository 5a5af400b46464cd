"""Chat templates written for the tests, one of each kind that bases have, and a tokenizer for all of them."""

from __future__ import annotations

import datetime
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from data_pipeline.conversation import Conversation, Message, TaggedConversation, ToolCall
from data_pipeline.prompt.base_template.load import BaseTemplateSettings, load_base_prompts
from data_pipeline.prompt.base_template.template import BaseTemplate
from data_pipeline.prompt.tokenization import TokenizerSpec

SPECIAL = ("<bos>", "<eos>", "<|turn|>", "<|end|>", "<|close|>", "<|final|>")
PLAIN = """{%- if messages[0]['role'] != 'system' -%}
    {{- '<|turn|>system\\nBe kind.<|end|>\\n' -}}
{%- endif -%}
{%- for message in messages %}
    {{- '<|turn|>' + message.role + '\\n' + message.content + '<|end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|turn|>assistant\\n' }}{% endif %}
"""
# removes the thinking of earlier answers, and knows tools
THINKING = """
{%- if tools %}
    {{- '<|turn|>tools\\n' }}
    {%- for tool in tools %}{{ tool | tojson }}
{% endfor %}
    {{- '<|end|>\\n' }}
{%- endif %}
{%- set last = namespace(question=-1) %}
{%- for message in messages %}
    {%- if message.role == 'user' %}{% set last.question = loop.index0 %}{% endif %}
{%- endfor %}
{%- for message in messages %}
    {{- '<|turn|>' + message.role + '\\n' }}
    {%- if message.role == 'assistant' and loop.index0 > last.question %}
        {{- '<think>\\n' + (message.reasoning_content or '') + '\\n</think>\\n\\n' }}
    {%- endif %}
    {{- message.content }}
    {%- for call in message.tool_calls or [] %}
        {{- '<call>' + call.function.name + ' ' + (call.function.arguments | tojson) + '</call>' }}
    {%- endfor %}
    {{- '<|end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|turn|>assistant\\n' }}
    {%- if enable_thinking is defined and not enable_thinking %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}
{%- endif %}
"""
BLOCKS = """{{ bos_token }}
{%- for message in messages %}
    {%- if message.role == 'assistant' %}
        {{- '<|turn|>assistant\\n' }}
        {%- generation -%}
        {{- message.content + '<|end|>' }}
        {%- endgeneration -%}
        {{- '\\n' }}
    {%- else %}
        {{- '<|turn|>' + message.role + '\\n' + message.content + '<|end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|turn|>assistant\\n' }}{%- endif %}"""
# no system messages; no control token between a question and its answer; strips texts
MERGED = """{{- bos_token }}
{%- for message in messages %}
    {%- if message.role == 'system' %}{{ raise_exception('no system here') }}{% endif %}
    {%- if message.role == 'user' %}{{ 'Q: ' + message.content | trim + ' A:' }}
    {%- else %}{{ ' ' + message.content | trim + eos_token }}{% endif %}
{%- endfor %}"""
DATED = """{{- 'Today is ' + strftime_now('%d %B %Y') + '<|end|>' }}""" + PLAIN
# two control tokens end an answer; another one ends the last
ENDS = """{%- for message in messages %}
    {{- '<|turn|>' + message.role + '\\n' + message.content + '<|close|><|end|>' -}}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|turn|>assistant\\n' }}{% else %}{{ eos_token }}{% endif %}"""
FINAL = """{%- for message in messages %}
    {{- '<|turn|>' + message.role + '\\n' + message.content -}}
    {{- '<|final|>' if loop.last and not add_generation_prompt else '<|end|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|turn|>assistant\\n' }}{% endif %}"""
FORCED = """{%- for message in messages %}
    {{- '<|turn|>' + message.role + '\\n' }}
    {%- if message.reasoning_content %}{{ '<think>\\n' + message.reasoning_content + '</think>' }}{% endif %}
    {{- message.content + '<|end|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|turn|>assistant\\n<think>\\n' }}{% endif %}"""
ALL = {
    "plain": PLAIN,
    "thinking": THINKING,
    "blocks": BLOCKS,
    "merged": MERGED,
    "ends": ENDS,
    "final": FINAL,
    "forced": FORCED,
}


_FLAGS = ("lstrip", "rstrip", "single_word", "normalized")


# of Llama-3 and Qwen: line breaks that follow each other are one piece, whatever comes after them
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)


def write_base_tokenizer(
    folder: Path, chat_template: str | None, *, special: tuple[str, ...] = SPECIAL, pattern: str | None = LLAMA3
) -> Path:
    """A byte-level tokenizer with merges, in a folder as bases have it. pattern: None for GPT-2's."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(_backend(special, pattern), encoding="utf-8")
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<bos>",
        "eos_token": {"__type": "AddedToken", "content": "<eos>", **dict.fromkeys(_FLAGS, False), "special": True},
        "pad_token": "<eos>",
        "model_max_length": 4096,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    if chat_template is not None:
        (folder / "chat_template.jinja").write_text(chat_template, encoding="utf-8")
    return folder


@functools.cache
def _backend(special: tuple[str, ...], pattern: str | None) -> str:
    tokenizer = Tokenizer(models.BPE())
    pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)
    if pattern is not None:
        split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
        pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizer])
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    text = "Hello there, how are you today? assistant system user \n\n think The answer is 42."
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator([text] * 9, trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet))
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in ("<think>", "</think>")])
    return str(tokenizer.to_str())


def load(folder: Path, chat_template: str, **settings: Any) -> tuple[BaseTemplate, TokenizerSpec]:
    """A template with its tokenizer, as a recipe asks for it."""
    write_base_tokenizer(folder, chat_template, pattern=settings.get("pattern", LLAMA3))
    names = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
    date: datetime.date | None = settings.get("date")
    return load_base_prompts(
        {name: folder / name for name in names},
        BaseTemplateSettings(
            path=None,
            condition_in=settings.get("condition_in", "system"),
            rewritten_history=settings.get("rewritten_history", "one_row_per_answer"),
            variables=settings.get("variables", {}),
            date=date,
        ),
    )


def tagged(*turns: Any, system: str = "", condition: str = "", tools: str = "", **more: Any) -> TaggedConversation:
    """A conversation of texts (of user and assistant in turn) and messages; assistant messages have weight 1."""
    roles = ("user", "assistant")
    messages = tuple(
        Message(role=roles[number % 2], content=turn) if isinstance(turn, str) else turn  # type: ignore[arg-type]
        for number, turn in enumerate(turns)
    )
    conversation = Conversation(id="c", place="c", messages=messages, system=system, tools=tools)
    weights = tuple(1.0 if message.role == "assistant" else 0.0 for message in messages)
    return TaggedConversation(
        conversation=conversation, class_name="a", condition=condition, **{"message_weights": weights, **more}
    )


def answer(content: str, reasoning: str = "", **calls: Mapping[str, Any]) -> Message:
    """An assistant message with parts; calls: function -> arguments."""
    found = tuple(ToolCall(name=name, arguments=json.dumps(value), id="call00001") for name, value in calls.items())
    return Message(role="assistant", content=content, reasoning=reasoning, tool_calls=found)


def as_messages(conversation: Conversation) -> list[dict[str, Any]]:
    """What a user of `transformers` gives for the same conversation."""
    found: list[dict[str, Any]] = []
    if conversation.system:
        found.append({"role": "system", "content": conversation.system})
    for message in conversation.messages:
        entry: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.reasoning:
            entry["reasoning_content"] = message.reasoning
        if message.tool_calls:
            entry["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": json.loads(call.arguments)},
                }
                for call in message.tool_calls
            ]
        if message.role == "tool":
            entry |= {"name": message.name, "tool_call_id": message.tool_call_id}
        found.append(entry)
    return found
