"""Prompts given twice, parts of thinking, places of images, and values that a table or Parquet holds as other types."""

from __future__ import annotations

from contextlib import nullcontext
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest

from data_pipeline.conversation import Conversation
from data_pipeline.errors import RowError
from data_pipeline.formats.detect import layout_of
from data_pipeline.formats.unread import UnreadFieldError
from data_pipeline.read.layout import found_layout, in_layout
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


@pytest.mark.parametrize("name", ["prompter", "instruction", " User", "HUMAN"])
def test_a_prompt_under_another_name_of_the_user_is_the_same_prompt(name: str) -> None:
    """It would be in the conversation twice."""
    found = read({"prompt": QUESTION, "completion": [{**CHAT[0], "role": name}, CHAT[1]]}, format="prompt_answer")
    assert [message.content for message in found.messages] == [QUESTION, ANSWER]


def test_of_two_answers_of_one_word_none_is_taken_silently() -> None:
    row = {"question": QUESTION, "answer": "Paris", "output": "London"}
    fields = {"prompt": "question", "answer": "output"}
    with pytest.raises(UnreadFieldError, match="`answer`"):
        read(row, format="prompt_answer", fields=fields)
    for value in ("London", None, ""):
        assert read({**row, "answer": value, "gpt": "4"}, format="prompt_answer", fields=fields).messages[1].content
    long = {**row, "output": "It is London.", "answer": "London"}
    assert read(long, format="prompt_answer", fields=fields).messages[1].content == "It is London."
    with pytest.raises(UnreadFieldError, match="`instruction`"):
        read({"messages": CHAT, "instruction": "Translate"})


SECOND = {
    "a_query": {"query": "Haus"},
    "an_input": {"input": "6*7"},
    "a_number": {"context": 7},
    "a_system_text": {"system_prompt": "Pirate"},
}


@pytest.mark.parametrize("name", SECOND)
def test_a_second_prompt_is_named_even_if_it_is_one_word(name: str) -> None:
    [key] = SECOND[name]
    for row, layout in (
        ({"prompt": QUESTION, "completion": ANSWER}, "prompt_answer"),
        ({"prompt": QUESTION, "answers": [{"answer": ANSWER}]}, "ranked"),
        ({"messages": CHAT, "system": "Be brief."}, "messages"),
    ):
        if layout == "messages" and key != "system_prompt":
            assert read({**row, **SECOND[name]}).system == "Be brief.", "a label beside messages"
            continue
        with pytest.raises(UnreadFieldError, match=f"`{key}`"):
            read({**row, **SECOND[name]}, format=layout)
        assert read({**row, **SECOND[name]}, format=layout, ignored=(key,)).messages[-1].content == ANSWER
        assert read({**row, key: None, "user": "anna"}, format=layout).messages[-1].content == ANSWER


@pytest.mark.parametrize(
    ("extra", "key"), [({"value": "No"}, "value"), ({"text": "No"}, "text"), ({"from": "human"}, "from")]
)
def test_a_second_text_or_speaker_of_a_message_is_named(extra: dict[str, str], key: str) -> None:
    with pytest.raises(UnreadFieldError, match=f"`messages.{key}`"):
        read(with_answer("Yes", **extra))
    assert read(with_answer("Yes", speaker="Anna", **{"from": "gpt"})).messages[-1].content == "Yes"


def test_a_turn_with_prompt_and_answer_keeps_the_other_parts_of_the_answer() -> None:
    call = {"name": "f", "arguments": "{}"}
    pair = {"input": QUESTION, "output": ANSWER, "reasoning_content": "Hmm.", "tool_calls": [call], "weight": 0.5}
    answer = read({"conversation": [pair]}, format="turns").messages[1]
    assert (answer.content, answer.reasoning, answer.tool_calls[0].name, answer.weight) == (ANSWER, "Hmm.", "f", 0.5)
    alone = read({"conversation": [{"user": QUESTION, "weight": 0}, {"assistant": ANSWER}]}, format="turns")
    assert [message.weight for message in alone.messages] == [0.0, None]


@pytest.mark.parametrize("part", [{"reasoning": "Hmm, so."}, {"tool_calls": [{"name": "f"}]}])
def test_only_answers_have_reasoning_and_calls(part: dict[str, Any]) -> None:
    system = {"role": "system", "content": "Be brief."}
    with pytest.raises(RowError, match="only assistant messages have such a part"):
        read({"messages": [{**system, **part}, *CHAT]})
    assert read({"messages": [{**system, **dict.fromkeys(part)}, *CHAT]}).system == "Be brief."


def test_both_sides_of_a_tie_have_their_own_place_and_id() -> None:
    described = {"path": "a", "format": "auto", "answer_classes": {"chosen": "a", "rejected": "b", "bothbad": "b"}}
    row = {"id": 7, "winner": "both_bad", "conversation_a": CHAT, "conversation_b": CHAT}
    source = in_layout(SourceSettings.model_validate(described), found_layout("a", [("a:1", row)]))
    found = RowReader(source)(row, "a:1")
    assert [(one.place, one.id) for one in found] == [
        ("a:1.bothbad-1", "7.bothbad-1"),
        ("a:1.bothbad-2", "7.bothbad-2"),
    ]
    assert [one.id for one in RowReader(source)({**row, "winner": "model_b"}, "a:1")] == ["7.rejected", "7.chosen"]


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


@pytest.mark.parametrize("edge", ["<image>\n", ""])
def test_the_place_of_an_image_is_a_bad_row_in_every_format(edge: str) -> None:
    asked = f"{edge}What is it?"
    pair = {"answer_classes": {"chosen": "a", "rejected": "b"}}
    transcript = f"\n\nHuman: {asked}\n\nAssistant: A dog."
    for row, more in (
        ({"prompt": asked, "chosen": ANSWER, "rejected": ANSWER}, pair),
        ({"chosen": transcript, "rejected": transcript}, pair),
        ({"prompt": asked, "answers": [{"answer": ANSWER, "rank": 1}]}, {"class": "a"}),
        ({"instruction": QUESTION, "output": ANSWER, "history": [[asked, ANSWER]]}, {"class": "a"}),
        ({"system": asked, "messages": CHAT}, {"class": "a"}),
    ):
        layout = found_layout("a", [("a:1", row)])
        source = in_layout(SourceSettings.model_validate({"path": "a", "format": "auto", **more}), layout)
        with pytest.raises(RowError, match="the place of an image") if edge else nullcontext():
            assert RowReader(source)(row, "a:1")


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


@pytest.mark.parametrize(("value", "name"), [(Decimal("7.0"), "7"), (Decimal("7.5"), "7.5"), (UUID(int=7), None)])
def test_decimals_and_uuids_are_ids(value: Any, name: str | None) -> None:
    assert read({"messages": CHAT, "id": value}).id == (name or "00000000-0000-0000-0000-000000000007")


def test_a_key_with_dots_in_it_is_that_key() -> None:
    """As pandas names the columns of objects."""
    row = {"messages": CHAT, "meta.s": 0.5, "meta": {"s": 1.0}}
    assert read(row, reward_field="meta.s").score == 0.5
    del row["meta.s"]
    assert read(row, reward_field="meta.s").score == 1.0


@pytest.mark.parametrize(("value", "name"), [(Decimal("1.0"), "1"), (Decimal("0.5"), "0.5")])
def test_a_decimal_names_a_class(value: Any, name: str) -> None:
    described = {"path": "a", "format": "messages", "class_field": "q"}
    [found] = RowReader(SourceSettings.model_validate(described))({"messages": CHAT, "q": value}, "a:1")
    assert found.class_value == name


@pytest.mark.parametrize("mask", ["[0, 0]", " [1]"])
def test_a_mask_may_be_a_list_as_text(mask: str) -> None:
    expected = 0.0 if "0" in mask else 1.0
    assert read({"messages": CHAT, "loss_mask": mask}).messages[1].weight == expected
