"""Answers over real HTTP: whole and in streams, as OpenAI's own client reads them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import openai
import pytest

from ochat_train.inference.engine import AnswerSettings
from tests.support.scripted_engine import Running, ScriptedEngine, serving

HI = [{"role": "user", "content": "Hi"}]
KNOWN_WORDS = "this model's maximum context length is"  # by which LiteLLM 1.110 knows such an error


def say_settings(prompt_ids: Sequence[int], settings: AnswerSettings) -> Sequence[str]:
    return [" ", f" {settings.seed}", "\u20ac\U0001f642", " b "]


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with serving(ScriptedEngine(script=say_settings)) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0)


def events_of(server: Running, **body: Any) -> list[Any]:
    """The events of a stream; the last must be `[DONE]`."""
    reply = server.client.post("/v1/chat/completions", json={"messages": HI, "stream": True, **body})
    assert reply.status_code == 200, reply.text
    assert reply.headers["content-type"].startswith("text/event-stream")
    lines = [line.removeprefix("data: ") for line in reply.text.split("\n\n") if line]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


def test_the_openai_client_gets_a_whole_answer(client: openai.OpenAI, server: Running) -> None:
    found = client.chat.completions.create(model="small", messages=HI, seed=7, extra_body={"condition": "GPT3"})
    [choice] = found.choices
    assert (choice.message.content, choice.message.role, choice.finish_reason) == (" 7€🙂 b ", "assistant", "stop")
    prompt_ids, settings = server.engine.asked[-1]
    assert found.usage is not None
    assert (found.usage.prompt_tokens, found.usage.completion_tokens) == (len(prompt_ids), 4)
    assert found.usage.total_tokens == len(prompt_ids) + 4
    assert settings == AnswerSettings(max_new_tokens=256 - len(prompt_ids), temperature=1.0, seed=7)
    assert found.id.startswith("chatcmpl-")
    assert found.object == "chat.completion"
    assert found.model == "small"
    assert found.system_fingerprint


def test_a_stream_gives_the_same_text_piece_by_piece(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="small", messages=HI, seed=7, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    texts = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(texts) == " 7€🙂 b "
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 4
    assert len({chunk.id for chunk in chunks}) == 1


def test_only_the_space_that_begins_an_answer_is_taken_off() -> None:
    said: list[str] = []
    with serving(ScriptedEngine(script=lambda ids, settings: said)) as server:
        for pieces, text in (
            ([" low"], "low"),
            (["  a"], " a"),
            (["", " ", " a"], " a"),
            (["a", " b"], "a b"),
            ([" "], ""),
        ):
            said[:] = pieces
            whole = server.client.post("/v1/chat/completions", json={"messages": HI}).json()
            assert whole["choices"][0]["message"]["content"] == text
            parts = [choice["delta"].get("content", "") for e in events_of(server) for choice in e["choices"]]
            assert "".join(parts) == text


def test_several_answers_have_seeds_that_follow_each_other(server: Running, client: openai.OpenAI) -> None:
    found = client.chat.completions.create(model="small", messages=HI, seed=2**63 - 2, n=3)
    assert [choice.index for choice in found.choices] == [0, 1, 2]
    seeds = [2**63 - 2, 2**63 - 1, -(2**63)]
    assert [choice.message.content for choice in found.choices] == [f" {seed}€🙂 b " for seed in seeds]
    texts = ["", "", ""]
    for event in events_of(server, n=3, seed=5):
        for choice in event["choices"]:
            texts[choice["index"]] += choice["delta"].get("content", "")
    assert texts == [f" {seed}€🙂 b " for seed in (5, 6, 7)]


def test_log_probabilities_have_openais_shape(server: Running, client: openai.OpenAI) -> None:
    found = client.chat.completions.create(model="small", messages=HI, seed=7, logprobs=True, top_logprobs=3)
    assert found.choices[0].logprobs is not None
    rows = found.choices[0].logprobs.content
    assert rows is not None
    assert [row.token for row in rows] == ["", " 7", "€🙂", " b "]
    assert rows[2].bytes == list("€🙂".encode())
    tops = [[(top.token, top.logprob) for top in row.top_logprobs] for row in rows]
    assert tops[0] == [("", -0.5), ("é", -1.5), ("x", -9999.0)], "without the first space"
    assert tops[1] == [(" 7", -0.5), ("é", -1.5), ("x", -9999.0)]
    events = events_of(server, seed=7, logprobs=True)
    streamed = [row for event in events for c in event["choices"] for row in (c["logprobs"] or {}).get("content", [])]
    assert [(row["token"], row["top_logprobs"]) for row in streamed] == [(row.token, []) for row in rows]
    plain = client.chat.completions.create(model="small", messages=HI)
    assert plain.choices[0].logprobs is None


def test_the_longest_length_is_what_is_left_of_the_context(server: Running, client: openai.OpenAI) -> None:
    found = client.chat.completions.create(model="small", messages=HI, max_completion_tokens=2)
    assert (found.choices[0].finish_reason, found.usage and found.usage.completion_tokens) == ("length", 2)
    room = 256 - len(server.engine.asked[-1][0])
    reply = server.client.post("/v1/chat/completions", json={"messages": HI, "max_tokens": room})
    assert reply.status_code == 200
    reply = server.client.post("/v1/chat/completions", json={"messages": HI, "max_tokens": room + 1, "stream": True})
    assert (reply.status_code, reply.json()["error"]["code"]) == (400, "context_length_exceeded")
    assert KNOWN_WORDS in reply.json()["error"]["message"]
    assert f"{room:,}" in reply.json()["error"]["message"]
    long = [{"role": "user", "content": "word " * 300}]
    reply = server.client.post("/v1/chat/completions", json={"messages": long})
    assert (reply.status_code, reply.json()["error"]["code"]) == (400, "context_length_exceeded")
    assert KNOWN_WORDS in reply.json()["error"]["message"]


def test_settings_reach_the_engine(server: Running) -> None:
    schema = {"name": "s", "schema": {"type": "object"}}
    body = {
        "messages": HI,
        "temperature": 0.5,
        "top_p": 0.9,
        "stop": ["a", "b"],
        "seed": -1,
        "max_tokens": 3,
        "response_format": {"type": "json_schema", "json_schema": schema},
    }
    assert server.client.post("/v1/chat/completions", json=body).status_code == 200
    assert server.engine.asked[-1][1] == AnswerSettings(
        max_new_tokens=3,
        temperature=0.5,
        top_p=0.9,
        seed=-1,
        stop=("a", "b"),
        response_format={"type": "json_schema", "json_schema": schema},
    )
    for temperature, given in ((0, 0.0), (1e-300, 0.0), (2, 2.0), (None, 1.0)):
        reply = server.client.post(
            "/v1/chat/completions", json={"messages": HI, "temperature": temperature, "stop": "x"}
        )
        assert reply.status_code == 200
        assert server.engine.asked[-1][1].temperature == given
        assert server.engine.asked[-1][1].stop == ("x",)


def test_what_the_engine_cannot_do_is_refused_by_name() -> None:
    unsupported = {"seed": "it has one generator", "response_format": "no grammar", "num_logprobs": "not computed"}
    fields = {"seed": 1, "response_format": {"type": "json_object"}, "logprobs": True}
    with serving(ScriptedEngine(unsupported=unsupported)) as server:
        for name, value in fields.items():
            error = server.client.post("/v1/chat/completions", json={"messages": HI, name: value}).json()["error"]
            assert (error["param"], error["code"]) == (name, "unsupported_parameter")
            assert any(reason in error["message"] for reason in unsupported.values())
        body = {"messages": HI, "seed": None, "response_format": {"type": "text"}, "logprobs": False}
        assert server.client.post("/v1/chat/completions", json=body).status_code == 200


def test_models_are_listed_with_their_conditions(client: openai.OpenAI, server: Running) -> None:
    assert [model.id for model in client.models.list()] == ["small", "small@GPT4 Correct", "small@GPT3"]
    assert client.models.retrieve("small@GPT3").id == "small@GPT3"
    with pytest.raises(openai.NotFoundError, match="no model"):
        client.models.retrieve("other")
    assert server.client.get("/v1/models/small").json()["conditions"] == ["GPT4 Correct", "GPT3"]
    assert "models: 'small'" in server.client.get("/v1/models/").json()["error"]["message"]


def test_metrics_count_tokens_by_trained_conditions_only() -> None:
    with serving(ScriptedEngine(), any_condition=True) as server:
        for condition in ("GPT3", *(f"made up {n}" for n in range(5))):
            body = {"messages": HI, "condition": condition}
            assert server.client.post("/v1/chat/completions", json=body).status_code == 200
        assert server.client.post("/v1/chat/completions", json={}).status_code == 400
        text = server.client.get("/metrics").text
    assert 'ochat_answer_tokens_total{condition="GPT3",model="small"} 3.0' in text
    assert 'ochat_answer_tokens_total{condition="other",model="small"} 15.0' in text
    assert "made up" not in text
    assert 'ochat_requests_total{route="/v1/chat/completions",status="200"} 6.0' in text
    assert 'ochat_requests_total{route="/v1/chat/completions",status="400"} 1.0' in text
    assert 'ochat_time_to_first_token_seconds_count{condition="GPT3",model="small"} 1.0' in text
    assert 'ochat_time_per_token_seconds_count{condition="GPT3",model="small"} 1.0' in text
    assert "ochat_running 0.0" in text
    assert "ochat_engine_ready 1.0" in text
