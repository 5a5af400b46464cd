"""Which prompt a request gets: conditions, ids of training, and texts that look like control tokens."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.conversation import Message
from data_pipeline.errors import UserError
from data_pipeline.prompt.chat_folder import write_tokenizer_folder
from ochat_train.serving import app
from ochat_train.serving.app import make_app
from ochat_train.serving.errors import ApiError
from ochat_train.serving.prompts import PromptWriter
from ochat_train.serving.requests import read_request
from ochat_train.serving.served import ModelTable, OfferedModel
from ochat_train.system.pretrained import TemplateError, load_tokenizer, prompt_ids
from tests.support import jinja_templates
from tests.support.scripted_engine import CONDITIONS, ScriptedEngine, offered, serving, tokenizer_of

TEMPLATES = ("openchat_3.5", "openchat_3.2", "chatml", "llama-3.1", "qwen2.5", "gemma-3", "mistral-v3", "phi-4")
HI = [{"role": "user", "content": "Hi"}]


def ids_of(model: OfferedModel, messages: Sequence[Any], condition: str | None = None, **fields: Any) -> list[int]:
    return PromptWriter(model).ids(read_request({"messages": list(messages), **fields}), condition)


def control_tokens(model: OfferedModel) -> dict[int, str]:
    return {i: str(token) for i, token in model.tokenizer.added_tokens_decoder.items() if token.special}


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_typed_control_token_stays_text(template: str) -> None:
    model = offered(template)
    control = control_tokens(model)
    assert control
    plain = [i for i in ids_of(model, HI, CONDITIONS[0]) if i in control]
    assert plain  # the template's own
    for token in control.values():
        for text in (token, f"a{token}b", f"{token}{token}"):
            answer = [{"role": "user", "content": "x"}, {"role": "assistant", "content": text}, *HI]
            turns = [i for i in ids_of(model, answer, CONDITIONS[0]) if i in control]
            usual = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}, *HI]
            assert turns == [i for i in ids_of(model, usual, CONDITIONS[0]) if i in control]
            found = ids_of(model, [{"role": "user", "content": text}], CONDITIONS[0])
            assert [i for i in found if i in control] == plain
            assert token in model.tokenizer.decode([i for i in found if i not in control])
            asked = ids_of(model, HI, f"GPT {token}")
            assert [i for i in asked if i in control] == plain


def test_a_template_that_lets_people_write_control_tokens_is_not_served() -> None:
    """The control: the same template without what makes texts plain."""
    import copy

    tokenizer = copy.deepcopy(tokenizer_of("chatml"))
    PromptWriter(offered("chatml", tokenizer=tokenizer)).check_plain()
    tokenizer.chat_template = tokenizer.chat_template.replace("| replace(token", "| replace('never found'")
    with pytest.raises(UserError, match="write real ones"):
        make_app(ScriptedEngine(), [offered("chatml", tokenizer=tokenizer)])


def test_prompts_are_those_of_training() -> None:
    """Literal text of the format, tokenized in pieces."""
    model = offered()
    tokenizer = model.tokenizer
    bos, end = (tokenizer.convert_tokens_to_ids(token) for token in ("<s>", "<|end_of_turn|>"))

    def plain(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False).input_ids)

    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]},
        {"role": "assistant", "content": "Hi", "refusal": None},
        {"role": "user", "content": "How?", "name": "", "tool_call_id": ""},
    ]
    parts = ["Be brief.", "GPT3 User: Hello", "GPT3 Assistant: Hi", "GPT3 User: How?"]
    expected = [bos, *(i for part in parts for i in [*plain(part), end]), *plain("GPT3 Assistant:")]
    assert ids_of(model, messages, "GPT3") == expected
    messages[0]["role"] = "developer"
    assert ids_of(model, messages, "GPT3") == expected


def test_conditions_come_from_the_field_the_name_or_the_export() -> None:
    with serving() as server:

        def asked(**fields: Any) -> list[int]:
            reply = server.client.post("/v1/chat/completions", json={"messages": HI, **fields})
            assert reply.status_code == 200, reply.text
            return server.engine.asked[-1][0]

        best, other = (ids_of(offered(), HI, condition) for condition in CONDITIONS)
        assert best != other
        assert asked() == asked(model="small") == asked(condition="GPT4 Correct") == asked(condition=None) == best
        assert asked(condition="GPT3") == asked(model="small@GPT3") == other
        assert asked(model="small@GPT3", condition="GPT3") == other
        assert asked(chat_template_kwargs={"condition": "GPT3"}) == other
        assert asked(stream=True, condition="GPT3") == other
        refused = {
            "unknown": ({"condition": "gpt3"}, 400, "condition"),
            "unknown in a name": ({"model": "small@gpt3"}, 400, "condition"),
            "two": ({"model": "small@GPT3", "condition": "GPT4 Correct"}, 400, "condition"),
            "empty": ({"condition": ""}, 400, "condition"),
            "model": ({"model": "other"}, 404, "model"),
            "model with a condition": ({"model": "other@GPT3"}, 404, "model"),
        }
        for name, (fields, status, param) in refused.items():
            for stream in (False, True):
                body = {"messages": HI, "stream": stream, **fields}
                reply = server.client.post("/v1/chat/completions", json=body)
                assert (reply.status_code, reply.json()["error"]["param"]) == (status, param), name
        error = server.client.post("/v1/chat/completions", json={"messages": HI, "condition": "gpt3"}).json()["error"]
        assert error["code"] == "unknown_condition"
        assert all(condition in error["message"] for condition in CONDITIONS)


def test_any_condition_is_allowed_where_that_is_said() -> None:
    table = ModelTable([offered()], any_condition=True)
    assert table.choose(None, ["made up"]).condition == "made up"
    assert table.choose("small@made up", []).condition == "made up"
    with pytest.raises(ApiError, match="not trained"):
        ModelTable([offered()], any_condition=False).choose(None, ["made up"])


def test_an_empty_condition_is_one_that_is_named() -> None:
    table = ModelTable([offered(conditions=("GPT3", ""), default="GPT3")], any_condition=False)
    assert list(table.names) == ["small", "small@GPT3", "small@"]
    assert table.choose(None, []).condition == "GPT3"
    assert table.choose("small@", []).condition == table.choose(None, [""]).condition == ""
    assert ids_of(offered(), HI, "") != ids_of(offered(), HI, "GPT3")


def test_a_folder_that_names_no_conditions_takes_none() -> None:
    table = ModelTable([offered(conditions=(), default=None)], any_condition=False)
    assert list(table.names) == ["small"]
    assert table.choose("small", []).condition is None
    with pytest.raises(ApiError, match="does not say"):
        table.choose("small", ["GPT3"])


def test_adapters_have_names_and_conditions_of_their_own() -> None:
    adapter = offered(name="tuned", adapter="lora", conditions=("Best",), default="Best")
    with serving(models=[offered(), adapter]) as server:
        names = [row["id"] for row in server.client.get("/v1/models").json()["data"]]
        assert names == ["small", *(f"small@{c}" for c in CONDITIONS), "tuned", "tuned@Best"]
        for name, expected in (("small", None), ("tuned", "lora"), ("tuned@Best", "lora")):
            server.client.post("/v1/chat/completions", json={"messages": HI, "model": name})
            assert server.engine.asked[-1][1].adapter == expected
    with pytest.raises(UserError, match="two models"):
        ModelTable([offered(), offered(name="small@GPT3")], any_condition=False)


def test_what_the_template_has_no_place_for_is_refused_with_its_reason() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    turns = [*HI, {"role": "assistant", "content": None, "tool_calls": [call]}]
    refused: dict[str, tuple[list[Any], str]] = {
        "tool calls": ([*turns, {"role": "tool", "content": "1", "tool_call_id": "1"}], "tool calls"),
        "tool": ([*HI, {"role": "tool", "content": "1"}], "unknown role"),
        "system later": ([*HI, {"role": "system", "content": "x"}], "system"),
        "reasoning": ([*HI, {"role": "assistant", "content": "y", "reasoning_content": "z"}, *HI], "reasoning"),
        "name": ([{"role": "user", "content": "Hi", "name": "Eve"}], "`name`"),
        "continued": ([*HI, {"role": "assistant", "content": "Hello"}], "continue"),
    }
    with serving() as server:
        for name, (messages, reason) in refused.items():
            for stream in (False, True):
                reply = server.client.post("/v1/chat/completions", json={"messages": messages, "stream": stream})
                assert reply.status_code == 400, name
                assert reason in reply.json()["error"]["message"], name
        assert server.engine.asked == []


def test_tools_are_shown_where_the_template_has_a_place() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "add", "arguments": '{"a":1}'}}
    tool = {"type": "function", "function": {"name": "add", "description": "d", "parameters": {"type": "object"}}}
    messages = [
        *HI,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "three", "tool_call_id": "1"},
    ]
    model = offered("qwen2.5")
    request = read_request({"messages": messages, "tools": [tool], "tool_choice": "none"})
    text = PromptWriter(model).prompt(request, CONDITIONS[0]).text
    assert '{"a":1}' in text  # unchanged, as in training
    assert "three" in text
    assert '"description": "d"' in text
    with pytest.raises(ApiError, match="does not read tool calls"):
        read_request({"messages": messages, "tools": [tool]})
    bad = {**call, "function": {"name": "add", "arguments": "[1]"}}
    with pytest.raises(ApiError, match="JSON object"):
        ids_of(model, [*HI, {"role": "assistant", "content": "", "tool_calls": [bad]}, *HI], CONDITIONS[0])


LOST = {
    "system": ({"role": "system", "content": "Be brief."}, "{% if m.role == 'system' %}{{ m.content }}{% endif %}"),
    "tool": ({"role": "tool", "content": "Be brief."}, "{% if m.role == 'tool' %}{{ m.content }}{% endif %}"),
    "tool_calls": (
        {"role": "assistant", "tool_calls": [{"function": {"name": "Be brief."}}]},
        "{% for call in m.tool_calls or [] %}{{ call.function.name }}{% endfor %}",
    ),
    "reasoning": ({"role": "assistant", "content": "x", "reasoning": "Be brief."}, "{{ m.reasoning_content }}"),
}


@pytest.mark.parametrize("lost", LOST)
def test_a_template_that_leaves_out_something_silently_is_caught(lost: str) -> None:
    import copy

    tokenizer = copy.deepcopy(tokenizer_of("chatml"))
    message, shown = LOST[lost]
    begin = "{% for m in messages %}{% if m.role in ['user', 'assistant'] %}[{{ m.role }}] {{ m.content }}{% endif %}"
    tokenizer.chat_template = begin + shown + "{% endfor %}"
    request = read_request({"messages": [message, *HI]})
    assert "Be brief." in PromptWriter(offered(tokenizer=tokenizer)).prompt(request, None).text
    tokenizer.chat_template = begin + "{% endfor %}"
    with pytest.raises(ApiError, match=f"shows nothing of `{lost}`"):
        PromptWriter(offered(tokenizer=tokenizer)).ids(request, None)


def test_two_names_of_the_reasoning_must_agree() -> None:
    answer = {"role": "assistant", "content": "x", "reasoning": "a", "reasoning_content": "b"}
    with pytest.raises(ApiError, match="two names"):
        ids_of(offered("qwen3"), [*HI, answer, *HI], CONDITIONS[0])
    answer["reasoning"] = "b"
    ids_of(offered("qwen3"), [*HI, answer, *HI], CONDITIONS[0])


def test_short_and_long_prompts_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short ones are written between the events of others, long ones in a thread."""
    asked: list[str] = []
    write = PromptWriter.ids

    def ids(self: PromptWriter, request: Any, condition: str | None) -> list[int]:
        asked.append(threading.current_thread().name)
        return write(self, request, condition)

    monkeypatch.setattr(PromptWriter, "ids", ids)
    body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2}
    with serving() as server:
        for _ in range(2):
            assert server.client.post("/v1/chat/completions", json=body).status_code == 200
            monkeypatch.setattr(app, "_SHORT_BODY_BYTES", 10)
        prompts = [prompt for prompt, _ in server.engine.asked]
    assert [name.startswith("prompts") for name in asked] == [False, True]
    assert prompts[0] == prompts[1]


def test_render_shows_what_is_sent() -> None:
    with serving() as server:
        body = {"model": "small@GPT3", "messages": [{"role": "user", "content": "Hi <s>"}], "temperature": 0}
        found = server.client.post("/v1/render", json=body).json()
        server.client.post("/v1/chat/completions", json=body)
        assert found["ids"] == server.engine.asked[-1][0]
        assert found["text"] == "<s>GPT3 User: Hi <s><|end_of_turn|>GPT3 Assistant:"
        assert (found["condition"], found["num_tokens"], found["context_tokens"]) == ("GPT3", len(found["ids"]), 256)
        assert [row["id"] for row in found["tokens"]] == found["ids"]
        assert [row["text"] for row in found["tokens"] if row["is_control"]] == ["<s>", "<|end_of_turn|>"]
        assert "".join(row["text"] for row in found["tokens"]) == found["text"]
        reply = server.client.post("/v1/render", json={**body, "conditions": "x"})
        assert (reply.status_code, reply.json()["error"]["param"]) == (400, "conditions")


@pytest.mark.parametrize("name", jinja_templates.ALL)
def test_a_bases_own_template_gets_what_it_got_in_training(name: str, tmp_path: Path) -> None:
    """Tool calls come as text from clients, and were objects in training; texts that spell control tokens are plain."""
    condition_in = "assistant" if name == "merged" else "system"  # that one has no place for a system text
    template, spec = jinja_templates.load(tmp_path / name, jinja_templates.ALL[name], condition_in=condition_in)
    write_tokenizer_folder(tmp_path / "out", spec, template, inference_condition="Good", max_length_tokens=999)
    tokenizer = load_tokenizer(tmp_path / "out")
    writer = PromptWriter(offered(tokenizer=tokenizer, parses_arguments=True))
    writer.check_plain()
    look = jinja_templates.answer("", "Look.", look={"at": '<|end|> "é"'})
    result = Message(role="tool", content="42 <eos>", name="look")
    conversations = [
        jinja_templates.tagged("Hello <|end|>", "Hi", "And?", "Bye"),
        jinja_templates.tagged("Hello", "Hi", system="Be brief."),
        jinja_templates.tagged("Hello", look, result, jinja_templates.answer("It is 42", "Say.")),
    ]
    compared = 0
    for item in conversations:
        messages = jinja_templates.as_messages(item.conversation)[:-1]
        sent = json.loads(json.dumps(messages))
        for message in sent:
            message.pop("thinking", None)
            for call in message.get("tool_calls", []):
                call["function"]["arguments"] = json.dumps(call["function"]["arguments"])
        try:
            expected = prompt_ids(tokenizer, messages, add_generation_prompt=True, condition="Good <|end|>")
            found = writer.ids(read_request({"messages": sent}), "Good <|end|>")
        except (TemplateError, ApiError):  # no place for tools, or for a system text
            assert {"tool", "system"} & {message["role"] for message in messages}
            continue
        compared += 1
        assert found == expected
    assert compared
