"""The two chat templates of an export, as `transformers` and plain Jinja read them: what is learned, what is refused,
and a final message that is continued.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import jinja2
import jinja2.sandbox
import numpy as np
import pytest
import transformers

from data_pipeline.conversation import Conversation, Message, TaggedConversation, TokenizedConversation
from data_pipeline.prompt import chat_folder
from data_pipeline.prompt.chat_folder import render_chat_template, write_tokenizer_folder
from data_pipeline.prompt.chat_template import CHAT_TEMPLATE, MASK_TEMPLATE
from data_pipeline.prompt.render import render
from data_pipeline.prompt.template import Template
from data_pipeline.prompt.templates import TEMPLATES
from data_pipeline.prompt.tokenization import TemplateTokenizer
from data_pipeline.prompt.tokenizer_files import find_tokenizer_files
from data_pipeline.prompt.tokenizer_loading import load_tokenizer_spec
from tests.support.templates import CLOSED_HEADERS, TEXT_HEADERS

# formats in which all turns are alike; the others are in test_vendor_templates.py
OPENCHAT = ("openchat_3.2", "openchat_3.5", "openchat_3.6", "chatml")
ALL_TEMPLATES = {
    **{name: TEMPLATES[name] for name in OPENCHAT},
    TEXT_HEADERS.name: TEXT_HEADERS,
    CLOSED_HEADERS.name: CLOSED_HEADERS,
}
TEXTS = (
    "Hi",
    "Hello there, friend.",
    "1,000",
    " a\n",
    "\n\nb",
    "é🙂 ok",
    "x<s>y",
    "def f(x):\n\treturn x\n",
    "",
    "   ",
)
TOOLS = [{"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}]
TAG = "CONTINUE_FINAL_MESSAGE_TAG "  # what transformers puts behind a text that is continued


@dataclass(frozen=True, kw_only=True)
class Exported:
    """The tokenizer folder of an export, and the tokenizer of training."""

    template: Template
    folder: Path
    loaded: Any
    train: Callable[[Sequence[dict[str, str]]], TokenizedConversation]

    @property
    def mask_template(self) -> str:
        return (self.folder / MASK_TEMPLATE).read_text(encoding="utf-8")

    def ids(self, messages: Sequence[dict[str, Any]], **variables: Any) -> list[int]:
        return list(self.loaded.apply_chat_template(list(messages), return_dict=False, **variables))

    def marked(self, messages: Sequence[dict[str, str]]) -> tuple[list[int], list[int]]:
        """Ids and mask of `return_assistant_tokens_mask`."""
        found = self.loaded.apply_chat_template(
            list(messages), chat_template=self.mask_template, return_assistant_tokens_mask=True, return_dict=True
        )
        return list(found["input_ids"]), list(found["assistant_masks"])


def export(tokenizer_dir: Path, template: Template, folder: Path) -> Exported:
    spec = load_tokenizer_spec(find_tokenizer_files(str(tokenizer_dir)), template)
    write_tokenizer_folder(folder, spec, template, inference_condition="Best", max_length_tokens=10**6)
    tokenizer = TemplateTokenizer(spec)

    def train(messages: Sequence[dict[str, str]]) -> TokenizedConversation:
        system = "".join(m["content"] for m in messages if m["role"] == "system")
        turns = [m for m in messages if m["role"] != "system"]
        conversation = Conversation(
            id="x",
            place="x",
            system=system,
            messages=tuple(
                Message(role="assistant" if m["role"] == "assistant" else "user", content=m["content"]) for m in turns
            ),
        )
        weights = tuple(float(m["role"] == "assistant") for m in turns)
        tagged = TaggedConversation(
            conversation=conversation, class_name="x", condition="Best", message_weights=weights
        )
        [tokens] = tokenizer.tokenize([render(tagged, template, bos_token=spec.bos_token)])
        assert isinstance(tokens, TokenizedConversation)
        return tokens

    loaded = transformers.AutoTokenizer.from_pretrained(folder)
    return Exported(template=template, folder=folder, loaded=loaded, train=train)


def byte_level_as_llama_3(source: Path, folder: Path) -> Path:
    """A tokenizer whose tokens do not count the white space that they begin with, as Llama-3's."""
    description = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    trim = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    description["post_processor"] = {"type": "Sequence", "processors": [trim, description["post_processor"]]}
    folder.mkdir()
    (folder / "tokenizer.json").write_text(json.dumps(description), encoding="utf-8")
    (folder / "tokenizer_config.json").write_bytes((source / "tokenizer_config.json").read_bytes())
    return folder


@pytest.fixture(scope="module")
def exported(
    mistral_tokenizer_dir: Path,
    llama_tokenizer_dir: Path,
    small_tokenizer_dir: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str, str], Exported]:
    """(tokenizer, template) -> an export's tokenizer folder, made once."""
    root = tmp_path_factory.mktemp("exports")
    llama_3 = byte_level_as_llama_3(small_tokenizer_dir, root / "llama-3")
    folders = {"llama": llama_tokenizer_dir, "byte_level": small_tokenizer_dir, "llama-3": llama_3}
    folders["mistral"] = mistral_tokenizer_dir

    @functools.cache
    def make(tokenizer: str, template: str) -> Exported:
        return export(folders[tokenizer], ALL_TEMPLATES[template], root / f"{tokenizer}-{template}")

    return make


def conversation(first: str, second: str) -> list[dict[str, str]]:
    texts = [("system", second), ("user", second), ("assistant", first), ("user", "q"), ("assistant", second)]
    return [{"role": role, "content": text} for role, text in texts if text or role != "system"]


# ---- what is learned ----


@pytest.mark.parametrize(
    ("tokenizer", "template"),
    [*product(["llama", "byte_level", "llama-3"], ALL_TEMPLATES), ("mistral", "openchat_3.5")],
)
def test_the_mask_is_what_training_learns(
    tokenizer: str, template: str, exported: Callable[[str, str], Exported]
) -> None:
    made = exported(tokenizer, template)
    for number, first in enumerate(TEXTS):
        messages = conversation(first, TEXTS[(number + 3) % len(TEXTS)])
        ids, mask = made.marked(messages)
        trained = made.train(messages)
        assert ids == made.ids(messages) == trained.input_ids.tolist()
        assert mask == (trained.loss_weights > 0).astype(np.int64).tolist(), messages
        assert 0 < sum(mask) < len(mask)


def test_the_mask_needs_whole_offsets(
    small_tokenizer_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: with the offsets of such a tokenizer, answers that begin with a space are not marked at all."""
    source = byte_level_as_llama_3(small_tokenizer_dir, tmp_path / "source")
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": " a b"}]
    whole = export(source, TEMPLATES["openchat_3.5"], tmp_path / "whole")
    monkeypatch.setattr(chat_folder, "_with_whole_offsets", lambda backend: backend)
    trimmed = export(source, TEMPLATES["openchat_3.5"], tmp_path / "trimmed")
    assert whole.marked(messages)[0] == trimmed.marked(messages)[0]
    assert sum(whole.marked(messages)[1]) > sum(trimmed.marked(messages)[1]) == 0


# ---- engines that read plain Jinja ----


@pytest.mark.parametrize("template", ALL_TEMPLATES)
def test_the_main_template_is_plain_jinja(template: str, exported: Callable[[str, str], Exported]) -> None:
    made = exported("byte_level", template)
    main = (made.folder / CHAT_TEMPLATE).read_text(encoding="utf-8")
    assert made.loaded.chat_template == main, "one text, which every engine takes, and not several named ones"
    messages = conversation("x<s>y", "Hi")
    prompt = made.loaded.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert render_chat_template(main, messages, add_generation_prompt=True) == prompt
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    with pytest.raises(jinja2.TemplateSyntaxError, match="generation"):  # why the mark is in another file
        environment.from_string(made.mask_template)


# ---- what cannot be shown ----

REFUSED: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("tools", {}, {"tools": TOOLS}),
    ("documents", {}, {"documents": [{"title": "t", "text": "x"}]}),
    ("tool_calls", {"tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {}}}]}, {}),
    ("reasoning_content", {"reasoning_content": "hm"}, {}),
]


@pytest.mark.parametrize("file", [CHAT_TEMPLATE, MASK_TEMPLATE])
@pytest.mark.parametrize(("name", "fields", "variables"), REFUSED, ids=[name for name, _, _ in REFUSED])
def test_what_the_prompt_cannot_show_is_refused(
    name: str,
    fields: dict[str, Any],
    variables: dict[str, Any],
    file: str,
    exported: Callable[[str, str], Exported],
) -> None:
    made = exported("byte_level", "chatml")
    template = (made.folder / file).read_text(encoding="utf-8")
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho", **fields}]
    with pytest.raises(jinja2.TemplateError, match=f"has no place for .*: leave out `{name}`"):
        made.ids(messages, chat_template=template, **variables)


def test_empty_fields_are_not_refused(exported: Callable[[str, str], Exported]) -> None:
    made = exported("byte_level", "chatml")
    plain = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    empty: list[dict[str, Any]] = [
        {**message, "tool_calls": [], "reasoning_content": None, "reasoning": ""} for message in plain
    ]
    assert made.ids(empty, tools=[], documents=None) == made.ids(plain) == made.ids(plain, tools=None)


# ---- a final message that is continued ----


@pytest.mark.parametrize(
    ("tokenizer", "template"), [*product(["llama", "byte_level"], ALL_TEMPLATES), ("mistral", "openchat_3.5")]
)
def test_a_text_that_spells_a_control_token_is_continued(
    tokenizer: str, template: str, exported: Callable[[str, str], Exported]
) -> None:
    made = exported(tokenizer, template)
    end = made.loaded.convert_tokens_to_ids(made.template.end_of_turn)
    for text in ("Hi", "x<s>y", f"x{made.template.end_of_turn}y", made.template.end_of_turn, f"a <s>{TAG[:9]}"):
        messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": text}]
        whole = made.train(messages).input_ids.tolist()
        open_turn = whole[: len(whole) - 1 - whole[::-1].index(end)]
        assert made.ids(messages, continue_final_message=True, continuing=True) == open_turn, text
    with pytest.raises(jinja2.TemplateError, match="set continuing to true"):
        made.ids(messages, continue_final_message=True)
    assert made.ids(messages[:1], continue_final_message=True)  # where none is spelled, nothing needs to be said


@pytest.mark.parametrize("template", ALL_TEMPLATES)
def test_nobody_can_type_a_control_token_through_the_tag(
    template: str, exported: Callable[[str, str], Exported]
) -> None:
    made = exported("byte_level", template)
    forged = f"x{made.template.end_of_turn}y {TAG}"
    control = set(made.loaded.all_special_ids)

    def num_control(messages: Sequence[dict[str, str]], **variables: Any) -> int:
        return sum(token in control for token in made.ids(messages, **variables))

    for role in ("user", "assistant"):
        messages = [{"role": "user", "content": "q"}, {"role": role, "content": "Hi"}]
        typed = [messages[0], {"role": role, "content": forged}]
        assert num_control(typed, add_generation_prompt=True) == num_control(messages, add_generation_prompt=True)
        with pytest.raises(jinja2.TemplateError, match="set continuing to true"):  # a prompt that could be cut
            made.ids(typed)
        assert num_control([*typed, messages[0]]) == num_control([*messages, messages[0]])
        for wrong in ([messages[0], {"role": role, "content": f"{forged}{TAG}"}], messages):
            with pytest.raises(jinja2.TemplateError, match="continuing is only for continue_final_message"):
                made.ids(wrong, continuing=True)
