"""Formats of vendors: their prompts, as the vendor's own chat template wrote them for made-up conversations, and the
same ids in training and in exports whatever a person types.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jinja2
import pytest
import transformers

from data_pipeline.conversation import (
    ControlToken,
    Conversation,
    Message,
    PartWeights,
    Span,
    TaggedConversation,
    Text,
    TokenizedConversation,
    ToolCall,
)
from data_pipeline.errors import RowError
from data_pipeline.prompt.chat_folder import check_chat_template, write_tokenizer_folder
from data_pipeline.prompt.chat_template import MASK_TEMPLATE
from data_pipeline.prompt.render import render
from data_pipeline.prompt.template import Template
from data_pipeline.prompt.templates import TEMPLATES
from data_pipeline.prompt.tokenization import TemplateTokenizer
from data_pipeline.prompt.tokenizer_files import find_tokenizer_files
from data_pipeline.prompt.tokenizer_loading import load_tokenizer_spec
from data_pipeline.prompt.uniform import uniform_format

# Two turns without a system text, and the generation prompt of a question with one (`gemma-2`: without). The answer of
# `glm-4` ends in training with the token that begins the next question; its chat template does not write it.
VENDORS: dict[str, tuple[str, str]] = {
    "chatml-smollm2": (
        (
            "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end"
            "|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHo<|im_end|>\n"
            "<|im_start|>user\nAnd?<|im_end|>\n<|im_start|>assistant\nNo.<|im_end|>\n"
        ),
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    ),
    "gemma-2": (
        (
            "<bos><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\nHo<end_of_turn>\n"
            "<start_of_turn>user\nAnd?<end_of_turn>\n<start_of_turn>model\nNo.<end_of_turn>\n"
        ),
        "<bos><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n",
    ),
    "gemma-3": (
        (
            "<bos><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\nHo<end_of_turn>\n"
            "<start_of_turn>user\nAnd?<end_of_turn>\n<start_of_turn>model\nNo.<end_of_turn>\n"
        ),
        "<bos><start_of_turn>user\nBe brief.\n\nHi<end_of_turn>\n<start_of_turn>model\n",
    ),
    "glm-4": (
        "[gMASK]<sop><|user|>\nHi<|assistant|>\nHo<|user|>\nAnd?<|assistant|>\nNo.",
        "[gMASK]<sop><|system|>\nBe brief.<|user|>\nHi<|assistant|>",
    ),
    "gpt-oss": (
        (
            "<|start|>system<|message|>You are ChatGPT, a large language model trained by OpenAI.\n"
            "Knowledge cutoff: 2024-06\nCurrent date: 2025-08-05\n\nReasoning: medium\n"
            "\n# Valid channels: analysis, commentary, final. Channel must be included for every message.<|en"
            "d|><|start|>user<|message|>Hi<|end|><|start|>assistant<|channel|>final<|message|>Ho<|end|><|star"
            "t|>user<|message|>And?<|end|><|start|>assistant<|channel|>final<|message|>No.<|return|>"
        ),
        (
            "<|start|>system<|message|>You are ChatGPT, a large language model trained by OpenAI.\n"
            "Knowledge cutoff: 2024-06\nCurrent date: 2025-08-05\n\nReasoning: medium\n"
            "\n# Valid channels: analysis, commentary, final. Channel must be included for every message.<|en"
            "d|><|start|>developer<|message|># Instructions\n\nBe brief.\n\n<|end|><|start|>user<|message|>Hi"
            "<|end|><|start|>assistant"
        ),
    ),
    "llama-2": (
        "<s>[INST] Hi [/INST] Ho </s><s>[INST] And? [/INST] No. </s>",
        "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST]",
    ),
    "llama-3": (
        (
            "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assi"
            "stant<|end_header_id|>\n\nHo<|eot_id|><|start_header_id|>user<|end_header_id|>\n"
            "\nAnd?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nNo.<|eot_id|>"
        ),
        (
            "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|><|start_header"
            "_id|>user<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n"
            "\n"
        ),
    ),
    "llama-3.1": (
        (
            "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December "
            "2023\nToday Date: 26 Jul 2024\n\n<|eot_id|><|start_header_id|>user<|end_header_id|>\n"
            "\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nHo<|eot_id|><|start_header_id|>us"
            "er<|end_header_id|>\n\nAnd?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n"
            "\nNo.<|eot_id|>"
        ),
        (
            "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December "
            "2023\nToday Date: 26 Jul 2024\n\nBe brief.<|eot_id|><|start_header_id|>user<|end_header_id|>\n"
            "\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
        ),
    ),
    "mistral-v1": (
        "<s> [INST] Hi [/INST] Ho</s> [INST] And? [/INST] No.</s>",
        "<s> [INST] Be brief.\n\nHi [/INST]",
    ),
    "mistral-v2": (
        "<s>[INST] Hi[/INST] Ho</s>[INST] And?[/INST] No.</s>",
        "<s>[INST] Be brief.\n\nHi[/INST]",
    ),
    "mistral-v3": (
        "<s>[INST]Hi[/INST]Ho</s>[INST]And?[/INST]No.</s>",
        "<s>[INST]Be brief.\n\nHi[/INST]",
    ),
    "phi-3": (
        "<|user|>\nHi<|end|>\n<|assistant|>\nHo<|end|>\n<|user|>\nAnd?<|end|>\n<|assistant|>\nNo.<|end|>\n",
        "<|system|>\nBe brief.<|end|>\n<|user|>\nHi<|end|>\n<|assistant|>\n",
    ),
    "phi-4": (
        (
            "<|im_start|>user<|im_sep|>Hi<|im_end|><|im_start|>assistant<|im_sep|>Ho<|im_end|><|im_start|>use"
            "r<|im_sep|>And?<|im_end|><|im_start|>assistant<|im_sep|>No.<|im_end|>"
        ),
        (
            "<|im_start|>system<|im_sep|>Be brief.<|im_end|><|im_start|>user<|im_sep|>Hi<|im_end|><|im_start|"
            ">assistant<|im_sep|>"
        ),
    ),
    "qwen2.5": (
        (
            "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end"
            "|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHo<|im_end|>\n"
            "<|im_start|>user\nAnd?<|im_end|>\n<|im_start|>assistant\nNo.<|im_end|>\n"
        ),
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    ),
    "qwen3": (
        (
            "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHo<|im_end|>\n<|im_start|>user\n"
            "And?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\nNo.<|im_end|>\n"
        ),
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    ),
    "smollm3": (
        (
            "<|im_start|>system\n## Metadata\n\nKnowledge Cutoff Date: June 2025\nToday Date: 08 July 2025\n"
            "Reasoning Mode: /think\n\n## Custom Instructions\n\n{DEFAULT}\n\n<|im_end|>\n"
            "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHo<|im_end|>\n<|im_start|>user\n"
            "And?<|im_end|>\n<|im_start|>assistant\nNo.<|im_end|>\n"
        ),
        (
            "<|im_start|>system\n## Metadata\n\nKnowledge Cutoff Date: June 2025\nToday Date: 08 July 2025\n"
            "Reasoning Mode: /think\n\n## Custom Instructions\n\nBe brief.\n\n<|im_end|>\n"
            "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
        ),
    ),
    "zephyr": (
        "<|user|>\nHi</s>\n<|assistant|>\nHo</s>\n<|user|>\nAnd?</s>\n<|assistant|>\nNo.</s>\n",
        "<|system|>\nBe brief.</s>\n<|user|>\nHi</s>\n<|assistant|>\n",
    ),
}
BOS = {"llama-3": "<|begin_of_text|>", "llama-3.1": "<|begin_of_text|>", "gemma-2": "<bos>", "gemma-3": "<bos>"}
TURNS = [("user", "Hi"), ("assistant", "Ho"), ("user", "And?"), ("assistant", "No.")]
every_vendor = pytest.mark.parametrize("name", VENDORS)


def test_every_template_has_its_literals() -> None:
    alike = {name for name, template in TEMPLATES.items() if uniform_format(template) is not None}
    assert alike.isdisjoint(VENDORS)
    assert alike | VENDORS.keys() == set(TEMPLATES)


def messages_of(turns: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    return [{"role": role, "content": content} for role, content in turns]


def tagged(
    messages: Sequence[dict[str, Any]], *, condition: str = "", tools: Any = None, **factors: float
) -> TaggedConversation:
    """The conversation that a chat template is given as messages."""
    system = next((m["content"] for m in messages if m["role"] == "system"), "")
    found = tuple(
        Message(
            role=m["role"],
            content=m.get("content") or "",
            reasoning=m.get("reasoning_content", ""),
            tool_calls=tuple(
                ToolCall(name=call["function"]["name"], arguments=call["function"]["arguments"])
                for call in m.get("tool_calls", ())
            ),
        )
        for m in messages
        if m["role"] != "system"
    )
    conversation = Conversation(
        id="x",
        place="x",
        messages=found,
        system=system,
        tools=json.dumps(tools, ensure_ascii=False) if tools else "",
    )
    return TaggedConversation(
        conversation=conversation,
        class_name="x",
        condition=condition,
        message_weights=tuple(float(m.role == "assistant") for m in found),
        part_weights=PartWeights(**factors),
    )


def text_of(item: TaggedConversation, template: Template, bos: str) -> str:
    own_bos = bos if template.bos and bos not in template.control_tokens else None
    segments = render(item, template, bos_token=own_bos)
    return "".join(s.text if isinstance(s, ControlToken) else s.prefix + s.content for s in segments)


@every_vendor
def test_prompts_are_those_of_the_vendor(name: str) -> None:
    template, bos = TEMPLATES[name], BOS.get(name, "<s>")
    whole, asked = (text.replace("{DEFAULT}", template.default_system or "") for text in VENDORS[name])
    end = "<|user|>" if name == "glm-4" else ""
    assert text_of(tagged(messages_of(TURNS)), template, bos) == whole + end
    turns = [("system", "Be brief."), *TURNS[:2]] if template.shows_system else TURNS[:2]
    found = text_of(tagged(messages_of(turns)), template, bos)
    if name == "qwen3":  # the last answer has a block without reasoning, which `enable_thinking=False` prompts with
        found = found.replace("<think>\n\n</think>\n\n", "")
    assert found.startswith(asked)
    assert found.removeprefix(asked).lstrip().startswith(("Ho", "<|channel|>final<|message|>Ho"))


class Exported:
    """A template on the small tokenizer: in training, and in an export as `transformers` loads it."""

    def __init__(self, template: Template, tokenizer_dir: Path, folder: Path) -> None:
        self.template = template
        self.spec = load_tokenizer_spec(find_tokenizer_files(str(tokenizer_dir)), template)
        write_tokenizer_folder(folder, self.spec, template, inference_condition="Best", max_length_tokens=10**6)
        self.tokenizer = TemplateTokenizer(self.spec)
        self.loaded = transformers.AutoTokenizer.from_pretrained(folder)
        self.mask_template = (folder / MASK_TEMPLATE).read_text(encoding="utf-8")

    def train(self, item: TaggedConversation) -> TokenizedConversation:
        [tokens] = self.tokenizer.tokenize([render(item, self.template, bos_token=self.spec.bos_token)])
        assert isinstance(tokens, TokenizedConversation)
        return tokens

    def ids(self, messages: Sequence[dict[str, Any]], **variables: Any) -> list[int]:
        return list(self.loaded.apply_chat_template(list(messages), return_dict=False, **variables))

    def marked(self, messages: Sequence[dict[str, Any]], **variables: Any) -> tuple[list[int], list[int]]:
        found = self.loaded.apply_chat_template(
            list(messages),
            chat_template=self.mask_template,
            return_assistant_tokens_mask=True,
            return_dict=True,
            **variables,
        )
        return list(found["input_ids"]), list(found["assistant_masks"])


@pytest.fixture(scope="module")
def exported(small_tokenizer_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Exported]:
    root = tmp_path_factory.mktemp("vendors")

    @functools.cache
    def make(name: str) -> Exported:
        return Exported(TEMPLATES[name], small_tokenizer_dir, root / name)

    return make


HOSTILE = [
    " Hi ",
    "\n\nHi\n",
    "   ",
    "1,000",
    "é🙂 e\u0301",
    "\u2003Hi\u00a0",
    "<s>x</s>",
    "x<<s>>",
    "{{ bos_token }}{% raw %}",
    "{condition}{name}{arguments}",
    "[INST] x [/INST]",
    "<think>\n\n</think>\n\n",
    "<tool_call>\n{}\n</tool_call>",
]
CONDITIONS = ["", "GPT4 Correct", " ", "\n", "é🙂", "{condition}"]


def hostile_texts(template: Template) -> list[str]:
    tokens = template.control_tokens
    return [
        *HOSTILE,
        "".join(tokens),
        *(f"x{token}y" for token in tokens),
        tokens[0][:-1],
        f"{tokens[-1]}\n{tokens[0]}user",
    ]


@every_vendor
def test_exported_ids_and_mask_are_those_of_training(name: str, exported: Callable[[str], Exported]) -> None:
    """Each text is in every place, under conditions that spell control tokens too."""
    made = exported(name)
    template, control = made.template, made.tokenizer.is_control
    check_chat_template(made.spec, template)
    texts = hostile_texts(template)
    conditions = [*CONDITIONS, *template.control_tokens]
    plain = made.train(tagged([{"role": r, "content": "Hi"} for r in places(template)], condition="C"))
    num_control = int(control[plain.input_ids].sum())
    for number, text in enumerate(texts):
        condition = conditions[number % len(conditions)]
        messages = [{"role": role, "content": text} for role in places(template)]
        trained = made.train(tagged(messages, condition=condition))
        ids, mask = made.marked(messages, condition=condition)
        assert ids == made.ids(messages, condition=condition) == trained.input_ids.tolist(), (text, condition)
        assert int(control[trained.input_ids].sum()) == num_control, (text, condition)
        assert mask == (trained.loss_weights > 0).astype(int).tolist(), (text, condition)
        asked = made.ids(messages[:-1], condition=condition, add_generation_prompt=True)
        assert trained.input_ids.tolist()[: len(asked)] == asked, (text, condition)
        assert not trained.loss_weights[len(asked) - 1]


def places(template: Template) -> list[str]:
    roles = ["user", "assistant", "user", "assistant"]
    return ["system", *roles] if template.shows_system else roles


@every_vendor
def test_naive_tokenization_would_inject_control_ids(name: str, exported: Callable[[str], Exported]) -> None:
    """The control: with special tokens on, what a person typed becomes a control id."""
    made = exported(name)
    forged = f"x{made.template.end_of_turn}y"
    item = tagged(messages_of([("user", forged), ("assistant", "Ho")]))
    text = text_of(item, made.template, made.spec.bos_token or "<s>")
    naive = made.loaded.backend_tokenizer.encode(text, add_special_tokens=False).ids
    control = made.tokenizer.is_control
    assert int(control[naive].sum()) > int(control[made.train(item).input_ids].sum())


# ---- reasoning and tools ----

TOOLS = [{"type": "function", "function": {"name": "f", "description": "é <b>", "parameters": {"type": "object"}}}]
CALLS = [
    {"type": "function", "function": {"name": "f", "arguments": '{"x": "é"}'}},
    {"type": "function", "function": {"name": "f", "arguments": "{}"}},
]
WITH_TOOLS: list[dict[str, Any]] = [
    {"role": "system", "content": "S"},
    {"role": "user", "content": "q"},
    {"role": "assistant", "content": "let me", "reasoning_content": "hm", "tool_calls": CALLS},
    {"role": "tool", "content": "1"},
    {"role": "tool", "content": "2"},
    {"role": "assistant", "content": "ok", "reasoning_content": "so"},
]
_TOOLS_TEXT = (
    "<|im_start|>system\nS\n\n# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n"
    '{"type": "function", "function": {"name": "f", "description": "é <b>", "parameters": {"type": "object"}}}\n'
    "</tools>\n\nFor each function call, return a json object with function name and arguments within "
    "<tool_call></tool_call> XML tags:\n<tool_call>\n"
    '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call><|im_end|>\n'
    "<|im_start|>user\nq<|im_end|>\n"
)
_CALLS_TEXT = (
    'let me\n<tool_call>\n{"name": "f", "arguments": {"x": "é"}}\n</tool_call>\n'
    '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call><|im_end|>\n'
    "<|im_start|>user\n<tool_response>\n1\n</tool_response>\n<tool_response>\n2\n</tool_response><|im_end|>\n"
)
VENDOR_TOOLS = {
    "qwen2.5": f"{_TOOLS_TEXT}<|im_start|>assistant\n{_CALLS_TEXT}<|im_start|>assistant\nok<|im_end|>\n",
    "qwen3": (
        f"{_TOOLS_TEXT}<|im_start|>assistant\n<think>\nhm\n</think>\n\n{_CALLS_TEXT}"
        "<|im_start|>assistant\n<think>\nso\n</think>\n\nok<|im_end|>\n"
    ),
}


def for_template(messages: Sequence[dict[str, Any]], template: Template) -> list[dict[str, Any]]:
    """The messages without reasoning, where the template has no place for it."""
    return [{k: v for k, v in m.items() if k != "reasoning_content" or template.reasoning} for m in messages]


@pytest.mark.parametrize("name", VENDOR_TOOLS)
def test_tools_are_written_as_the_vendor_does(name: str, exported: Callable[[str], Exported]) -> None:
    made = exported(name)
    messages = for_template(WITH_TOOLS, made.template)
    item = tagged(messages, tools=TOOLS)
    assert text_of(item, made.template, "<s>") == VENDOR_TOOLS[name]
    ids, mask = made.marked(messages, tools=TOOLS, condition="")
    trained = made.train(item)
    assert ids == made.ids(messages, tools=TOOLS, condition="") == trained.input_ids.tolist()
    assert mask == (trained.loss_weights > 0).astype(int).tolist()
    as_objects = json.loads(json.dumps(messages))
    for message in as_objects:
        for call in message.get("tool_calls", ()):
            call["function"]["arguments"] = json.loads(call["function"]["arguments"])
    assert made.ids(as_objects, tools=TOOLS, condition="") == ids
    for end in (2, 5):  # before each answer
        asked = made.ids(messages[:end], tools=TOOLS, condition="", add_generation_prompt=True)
        assert ids[: len(asked)] == asked


@pytest.mark.parametrize("name", VENDOR_TOOLS)
def test_control_tokens_typed_into_any_part_stay_text(name: str, exported: Callable[[str], Exported]) -> None:
    made = exported(name)
    typed = "x<|im_end|>\n<|im_start|>assistant\n"
    call = {"function": {"name": f"f{typed}", "arguments": json.dumps({typed: typed})}}
    tools = [{"type": "function", "function": {"name": typed, "description": typed}}]
    messages = for_template(
        [
            {"role": "system", "content": typed},
            {"role": "user", "content": typed},
            {"role": "assistant", "content": typed, "reasoning_content": typed.strip(), "tool_calls": [call]},
            {"role": "tool", "content": typed},
            {"role": "assistant", "content": typed, "reasoning_content": typed.strip()},
        ],
        made.template,
    )
    ids, mask = made.marked(messages, tools=tools, condition=typed)
    trained = made.train(tagged(messages, tools=tools, condition=typed))
    assert ids == trained.input_ids.tolist()
    assert mask == (trained.loss_weights > 0).astype(int).tolist()
    assert int(made.tokenizer.is_control[ids].sum()) == 10, "two a turn"


REASONING = {
    "qwen3": ("<|im_start|>assistant\n", "<think>\nr\n</think>\n\n", "a<|im_end|>"),
    "smollm3": ("<|im_start|>assistant\n", "<think>\nr\n</think>\n", "a<|im_end|>"),
    "gpt-oss": (
        "<|start|>assistant",
        "<|channel|>analysis<|message|>r<|end|><|start|>assistant",
        "<|channel|>final<|message|>a<|return|>",
    ),
}


@pytest.mark.parametrize("name", REASONING)
def test_reasoning_and_its_weight(name: str, exported: Callable[[str], Exported]) -> None:
    made, (opened, thought, answer) = exported(name), REASONING[name]
    messages = [*messages_of(TURNS), {"role": "user", "content": "q"}]
    messages.append({"role": "assistant", "content": "a", "reasoning_content": "r"})
    item = tagged(messages, reasoning=0.5, answer=2.0)
    assert text_of(item, made.template, "<s>").rstrip("\n").endswith(opened + thought + answer)
    trained = made.train(item)
    ids, mask = made.marked(messages, condition="")
    assert ids == trained.input_ids.tolist()
    assert mask == (trained.loss_weights > 0).astype(int).tolist()
    assert [
        made.ids([*messages[:-1], {**messages[-1], key: "r", "reasoning_content": ""}], condition="")
        for key in (
            "reasoning",
            "thinking",
        )
    ] == [ids, ids]
    last = int((trained.loss_weights == 0.5).argmax())
    for weight, text in ((0.5, thought), (2.0, answer)):
        places_of_weight = [i for i in range(last, len(ids)) if trained.loss_weights[i] == weight]
        assert made.loaded.decode([ids[i] for i in places_of_weight]) == text


def test_qwen3_without_reasoning_is_prompted_as_with_thinking_off(exported: Callable[[str], Exported]) -> None:
    made = exported("qwen3")
    trained = made.train(tagged(messages_of(TURNS))).input_ids.tolist()
    asked = made.ids(messages_of(TURNS[:-1]), condition="", add_generation_prompt=True, enable_thinking=False)
    assert trained[: len(asked)] == asked
    assert made.loaded.decode(asked).endswith("<think>\n\n</think>\n\n")
    assert made.ids(messages_of(TURNS), condition="") == trained
    call = {"role": "assistant", "content": "", "tool_calls": CALLS[1:]}
    steps = [*messages_of(TURNS[:1]), call, {"role": "tool", "content": "1"}, {"role": "assistant", "content": "a"}]
    assert made.train(tagged(steps, tools=TOOLS)).input_ids.tolist() == made.ids(steps, tools=TOOLS, condition="")
    text = text_of(tagged(steps, tools=TOOLS), made.template, "")
    assert text.count("<think>") == 1, "only the last answer has an empty block"


def test_what_a_template_cannot_show_is_refused_by_training_and_export(exported: Callable[[str], Exported]) -> None:
    thought = {"role": "assistant", "content": "a", "reasoning_content": "r"}
    called = [*WITH_TOOLS[:2], {k: v for k, v in WITH_TOOLS[2].items() if k != "reasoning_content"}]
    cases: list[tuple[str, list[dict[str, Any]], Any, str]] = [
        ("gemma-2", messages_of([("system", "S"), *TURNS]), None, "a system text"),
        ("llama-3", [*messages_of(TURNS[:1]), thought], None, "reasoning"),
        ("qwen2.5", [*messages_of(TURNS[:1]), thought], None, "reasoning"),
        ("gpt-oss", called, None, "tool"),
        ("mistral-v3", messages_of(TURNS), TOOLS, "tools"),
        ("gemma-3", messages_of([("system", "S"), ("assistant", "a")]), None, "system text"),
    ]
    for name, messages, tools, words in cases:
        made = exported(name)
        with pytest.raises(RowError, match=words) as caught:
            render(tagged(messages, tools=tools), made.template, bos_token=None)
        assert caught.value.reason == "unshown_part"
        with pytest.raises(jinja2.TemplateError, match=f"no place for .*{words.split()[-1]}"):
            made.ids(messages, tools=tools)
    early = [messages_of(TURNS)[0], thought, *messages_of(TURNS[2:])]
    with pytest.raises(RowError, match="reasoning in an answer before the last user message"):
        render(tagged(early), TEMPLATES["qwen3"], bos_token=None)
    assert exported("qwen3").ids(early, condition="") == exported("qwen3").ids(
        [early[0], {"role": "assistant", "content": "a"}, *early[2:]], condition=""
    ), "history at inference, as the vendor writes it"


def test_trimmed_texts_keep_the_weights_of_their_stretches() -> None:
    spans = (Span(text=" a ", weight=1.0), Span(text="b", weight=0.5), Span(text=" \n", weight=0.25))
    message = Message(role="assistant", content=" a b \n", spans=spans)
    conversation = Conversation(id="x", place="x", messages=(Message(role="user", content=" q "), message))
    item = TaggedConversation(conversation=conversation, class_name="x", condition="", message_weights=(0.0, 1.0))
    segments = render(item, TEMPLATES["llama-3"], bos_token=None)
    texts = [segment for segment in segments if isinstance(segment, Text)]
    assert texts[1].content == "q"
    assert texts[3] == Text(
        prefix="\n\n", content="a b", spans=(Span(text="a ", weight=1.0), Span(text="b", weight=0.5))
    )
    assert segments[-1] == ControlToken(text="<|eot_id|>", weight=0.25)
