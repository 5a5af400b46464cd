"""Prompts given twice, parts of thinking, places of images, and values that a table or Parquet holds as other types."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from data_pipeline.conversation import Conversation
from data_pipeline.errors import RowError
from data_pipeline.formats.detect import layout_of
from data_pipeline.formats.unread import UnreadFieldError
from data_pipeline.read.rows import RowReader
from data_pipeline.settings.sources import SourceSettings

QUESTION, ANSWER = "What is 6 times 7?", "It is 42."
CHAT = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}]
SHARED = [{"from": "human", "value": QUESTION}, {"from": "gpt", "value": ANSWER}]


def read(row: Any, *, ignored: tuple[str, ...] = (), **source: Any) -> Conversation:
    settings = SourceSettings.model_validate({"path": "a", "format": "messages", "class": "expert", **source})
    [conversation] = RowReader(settings, ignored=ignored)(row, "a:1")
    return conversation


def with_answer(content: Any, **more: Any) -> dict[str, Any]:
    return {"messages": [CHAT[0], {"role": "assistant", "content": content, **more}]}


# ---- a prompt beside messages ----

PROMPTS: dict[str, Any] = {
    "text": QUESTION,
    "text_with_space": f" {QUESTION} ",
    "a_message": CHAT[:1],
    "a_message_with_more_keys": [{**CHAT[0], "name": None}],
}


@pytest.mark.parametrize("name", PROMPTS)
@pytest.mark.parametrize("answers", [[CHAT, CHAT[1:]], [SHARED, SHARED[1:]]], ids=["messages", "sharegpt"])
@pytest.mark.parametrize("repeated", [True, False])
def test_a_prompt_is_read_once(name: str, answers: list[Any], repeated: bool) -> None:
    prompt, answer = PROMPTS[name], answers[0 if repeated else 1]
    if "from" in answer[0] and isinstance(prompt, list):  # a list of both layouts is a bad row
        prompt = SHARED[:1]
    found = read({"prompt": prompt, "completion": answer}, format="prompt_answer")
    assert [(message.role, message.content.strip()) for message in found.messages] == [
        ("user", QUESTION),
        ("assistant", ANSWER),
    ]


@pytest.mark.parametrize("prompt", ["Other words.", [{"role": "user", "content": "Other words."}]])
def test_a_prompt_that_the_messages_do_not_have_is_named(prompt: Any) -> None:
    row = {"prompt": prompt, "completion": CHAT}
    with pytest.raises(UnreadFieldError, match="`prompt`"):
        read(row, format="prompt_answer")
    assert read(row, format="prompt_answer", ignored=("prompt",)).messages[0].content == QUESTION
    pair = {"prompt": prompt, "chosen": CHAT, "rejected": CHAT}
    settings = {"path": "a", "format": "preference", "answer_classes": {"chosen": "a", "rejected": "b"}}
    source = SourceSettings.model_validate(settings)
    with pytest.raises(UnreadFieldError, match="`prompt`"):
        RowReader(source)(pair, "a:1")
    chosen, _ = RowReader(source, ignored=["prompt"])(pair, "a:1")
    assert [message.content for message in chosen.messages] == [QUESTION, ANSWER]


def test_an_input_alone_is_no_prompt_beside_a_text_that_may_be_the_instruction() -> None:
    row = {"task": "Translate to German", "input": "Hello there", "output": "Hallo"}
    assert "fields: {prompt: task, input: input" in str(layout_of(row))
    assert str(layout_of({**row, "task": "translation"})).startswith("format: prompt_answer")


# ---- thinking in parts ----


@pytest.mark.parametrize(
    "part",
    [
        {"type": "thinking", "thinking": "Hmm, 42.", "signature": "abc"},
        {"type": "thinking", "thinking": [{"type": "text", "text": "Hmm, "}, {"type": "text", "text": "42."}]},
        {"type": "reasoning", "text": "Hmm, 42.", "thinking": None},
    ],
)
def test_parts_of_thinking_before_the_text_are_reasoning(part: dict[str, Any]) -> None:
    answer = read(with_answer([part, {"type": "text", "text": ANSWER}])).messages[1]
    assert (answer.reasoning, answer.content) == ("Hmm, 42.", ANSWER)


@pytest.mark.parametrize(
    "row",
    [
        with_answer([{"type": "text", "text": ANSWER}, {"type": "thinking", "thinking": "Hmm."}]),
        with_answer([{"type": "redacted_thinking", "data": "x"}, {"type": "text", "text": ANSWER}]),
        with_answer([{"type": "thinking", "thinking": "Hmm.", "text": "Oh."}, {"type": "text", "text": ANSWER}]),
        with_answer([{"type": "thinking", "thinking": "Hmm.", "weight": 0}, {"type": "text", "text": ANSWER}]),
        with_answer([{"type": "thinking", "thinking": "Hmm."}], reasoning="Oh."),
        {"messages": [{"role": "user", "content": [{"type": "thinking", "thinking": "Hmm."}]}, CHAT[1]]},
    ],
)
def test_other_thinking_in_parts_is_a_bad_row(row: Any) -> None:
    with pytest.raises(RowError) as caught:
        read(row)
    assert caught.value.reason == "unsupported_content"


# ---- places of images ----


@pytest.mark.parametrize(
    "text",
    [
        *("<image>\nWhat is it?", "Look:\n<image>\nWhat is it?", "What is it? <image>", "<|image_1|> What is it?"),
        *("What is <|image_pad|>?", "<|vision_start|>", "<image_placeholder> What is it?", "[IMG] What is it?"),
    ],
)
def test_the_place_of_an_image_is_a_bad_row(text: str) -> None:
    with pytest.raises(RowError, match="the place of an image"):
        read({"messages": [{"role": "user", "content": text}, CHAT[1]]})


@pytest.mark.parametrize("text", ["Use `<image>` tags.", "<image> is no HTML, <img> is.", "In SVG it is <image>"])
def test_an_answer_may_speak_of_the_tag(text: str) -> None:
    assert read(with_answer(text)).messages[1].content == text


# ---- values of tables and of Parquet ----


@pytest.mark.parametrize("value", ["0.5", " 5e-1 ", "+.5", Decimal("0.5"), 0.5])
def test_a_reward_may_be_a_number_as_text_or_a_decimal(value: Any) -> None:
    assert read({"messages": CHAT, "s": value}, reward_field="s").score == 0.5


@pytest.mark.parametrize("value", ["", "high", "nan", "inf", "1_0", "0x1", Decimal("NaN"), None, True, "1e99"])
def test_other_texts_are_no_reward(value: Any) -> None:
    with pytest.raises(RowError) as caught:
        read({"messages": CHAT, "s": value}, reward_field="s")
    assert caught.value.reason == "invalid_reward"


@pytest.mark.parametrize(("value", "name"), [(Decimal("1.0"), "1"), (Decimal("0.5"), "0.5")])
def test_a_decimal_names_a_class(value: Any, name: str) -> None:
    described = {"path": "a", "format": "messages", "class_field": "q"}
    [found] = RowReader(SourceSettings.model_validate(described))({"messages": CHAT, "q": value}, "a:1")
    assert found.class_value == name


@pytest.mark.parametrize("mask", ["[0, 0]", " [1]"])
def test_a_mask_may_be_a_list_as_text(mask: str) -> None:
    expected = 0.0 if "0" in mask else 1.0
    assert read({"messages": CHAT, "loss_mask": mask}).messages[1].weight == expected
