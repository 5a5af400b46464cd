"""Whatever a client sends: a 4xx in OpenAI's shape that names what is wrong, and never a 5xx."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest

from benchmarks.malformed_requests import malformed_requests
from ochat_train.serving.app import App, make_app
from ochat_train.serving.errors import ApiError
from ochat_train.serving.harmless import HARMLESS, HARMLESS_IN_MESSAGES
from ochat_train.serving.requests import ChatRequest, read_request
from tests.support.processes import ROOT
from tests.support.scripted_engine import ScriptedEngine, offered

NUM_MALFORMED = 1100
KINDS_OF_BODIES = {"fields", "messages", "conversations", "changed bytes", "cut bodies", "other JSON"}
HI = [{"role": "user", "content": "Hi"}]
JSON = {"content-type": "application/json"}
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def app() -> App:
    return make_app(ScriptedEngine(), [offered()])


def post(app: App, *requests: tuple[bytes, dict[str, str]], path: str = CHAT) -> list[httpx.Response]:
    """The responses, in the order of the requests. An exception that the application raises comes out here."""

    async def all_of_them() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return [await client.post(path, content=body, headers=headers) for body, headers in requests]

    return asyncio.run(all_of_them())


def error_of(response: httpx.Response) -> dict[str, Any]:
    """The error of a response, which must have OpenAI's shape."""
    document = response.json()
    assert document.keys() == {"error"}
    error: dict[str, Any] = document["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["message"]
    return error


BODIES = {
    "nothing": b"",
    "not JSON": b"{",
    "not UTF-8": b'{"messages": "\xff"}',
    "UTF-16": json.dumps({"messages": HI}).encode("utf-16"),
    "byte order mark": b"\xef\xbb\xbf" + json.dumps({"messages": HI}).encode(),
    "null": b"null",
    "list": b"[]",
    "text": b'"x"',
    "NaN": b'{"messages": [], "temperature": NaN}',
    "infinity": b'{"messages": [{"role": "user", "content": "x"}], "temperature": 1e999}',
    "minus infinity": b'{"messages": [{"role": "user", "content": "x"}], "temperature": -Infinity}',
    "number of 5,000 digits": b'{"messages": [{"role": "user", "content": "x"}], "seed": ' + b"9" * 5000 + b"}",
    "number of 400 digits": b'{"messages": [{"role": "user", "content": "x"}], "temperature": ' + b"9" * 400 + b"}",
    "deep": b'{"messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deep in a schema": b'{"messages": [{"role": "user", "content": "x"}], "response_format": '
    + b'{"a":' * 100
    + b"1"
    + b"}" * 101,
    "half a surrogate pair": b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
    "half a surrogate pair in a key": b'{"messages": [{"role": "user", "content": "x"}], "\\ud800": 1}',
    "key twice": b'{"messages": [], "messages": [{"role": "user", "content": "x"}]}',
    "reserved character": json.dumps({"messages": [{"role": "user", "content": "a\ufdd0b"}]}).encode(),
    "nul": b'{"messages": [{"role": "user", "content": "x"}]}\x00',
    "no messages": b"{}",
    "empty messages": b'{"messages": []}',
    "message a text": b'{"messages": ["Hi"]}',
    "message null": b'{"messages": [null]}',
    "role": b'{"messages": [{"role": "bot", "content": "x"}]}',
    "no role": b'{"messages": [{"content": "x"}]}',
    "content a number": b'{"messages": [{"role": "user", "content": 1}]}',
    "content null": b'{"messages": [{"role": "user", "content": null}]}',
    "picture": b'{"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}',
    "part without text": b'{"messages": [{"role": "user", "content": [{"type": "text"}]}]}',
}


@pytest.mark.parametrize("name", BODIES)
def test_a_body_that_is_not_a_request_is_a_400(name: str, app: App) -> None:
    for path in (CHAT, "/v1/render"):
        [response] = post(app, (BODIES[name], JSON), path=path)
        assert response.status_code == 400
        error_of(response)


def test_a_number_that_python_would_not_read_is_told_in_our_words(app: App) -> None:
    """Python's own message names a function of it; the control is a number with as many digits as are taken."""
    texts = []
    for digits in (5000, 4001, 4000):
        body = b'{"messages": [{"role": "user", "content": "x"}], "seed": ' + b"9" * digits + b"}"
        [response] = post(app, (body, JSON))
        texts.append(error_of(response)["message"])
    expected = "the body is not JSON: a number has more than 4000 digits"
    assert [text == expected for text in texts] == [True, True, False]


FIELDS: dict[str, tuple[Any, ...]] = {
    "messages": (None, {}, "Hi", 1),
    "model": (1, ["small"], {}),
    "condition": (1, ["GPT3"], "a\ufdd0", "x" * 10_000),
    "stream": ("yes", 1, []),
    "stream_options": ({"include_usage": True}, {"x": 1}, 1),
    "n": (0, -1, 17, 1.5, "2", True, 10**30),
    "max_tokens": (0, -4, 1.5, "4", True, 10**30, 10_000),
    "max_completion_tokens": (0, -4, 10_000),
    "temperature": (-0.1, 2.1, "hot", True, [1], 10**400),
    "top_p": (0, -1, 1.1, "x"),
    "seed": (2**63, -(2**63) - 1, 1.5, "x", True),
    "stop": ("", [""], ["a"] * 5, [1], 1, {}),
    "logprobs": (1, "yes", 5),
    "top_logprobs": (1, 21, -1, "x"),
    "response_format": (
        "json",
        {},
        {"type": "xml"},
        {"type": "json_schema"},
        {"type": "json_object", "json_schema": {}},
    ),
    "chat_template_kwargs": ({"enable_thinking": False}, {"condition": 1}, []),
    "tools": ([{"type": "function"}], "x", [1], [{"a\ufdd0": 1}]),
    "tool_choice": ("required", {"type": "function"}),
    "frequency_penalty": (0.5, "x", True),
    "presence_penalty": (-1,),
    "logit_bias": ({"1": 100},),
    "functions": ([{}],),
    "user": (1, []),
    "top_k": (40,),
    "echo": (True,),
    "store": (True,),
    "audio": ({},),
    "temperatur": (1,),
    "": (1,),
    "x" * 5000: (1,),
    "<script>": (1,),
    "__class__": (1,),
}


def test_a_wrong_value_is_named(app: App) -> None:
    cases = [(name, value) for name, values in FIELDS.items() for value in values]
    bodies = [(json.dumps({"messages": HI, name: value}).encode(), JSON) for name, value in cases]
    for (name, value), response in zip(cases, post(app, *bodies), strict=True):
        assert response.status_code == 400, (name, value)
        assert str(error_of(response)["param"]).startswith(name[:100]), (name, value)


def test_the_nearest_name_is_suggested(app: App) -> None:
    for name, nearest in (("temperatur", "temperature"), ("max_token", "max_tokens"), ("conditions", "condition")):
        [response] = post(app, (json.dumps({"messages": HI, name: 1}).encode(), JSON))
        error = error_of(response)
        assert (error["param"], error["code"]) == (name, "unknown_parameter")
        assert f"did you mean `{nearest}`?" in error["message"]
    [response] = post(app, (json.dumps({"messages": [{**HI[0], "contents": "x"}]}).encode(), JSON))
    assert error_of(response)["param"] == "messages[0].contents"
    assert "did you mean `content`?" in error_of(response)["message"]


def test_what_clients_send_by_default_is_accepted() -> None:
    defaults: dict[str, Any] = {
        "n": 1,
        "frequency_penalty": 0,
        "presence_penalty": 0.0,
        "logit_bias": {},
        "user": "me",
        "stream_options": {"include_usage": False},
        "tools": [],
        "tool_choice": "auto",
        "parallel_tool_calls": True,
        "response_format": {"type": "text"},
        "store": False,
        "metadata": {"a": "b"},
        "service_tier": "auto",
        "top_logprobs": 0,
        "stop": None,
        "seed": None,
        "modalities": ["text"],
    }
    read_request({"messages": HI, **defaults})
    nothing = {name: None for name in [*ChatRequest.model_fields, *HARMLESS] if name != "messages"}
    message = {**HI[0], **{name: None for name in HARMLESS_IN_MESSAGES}, "type": "text"}
    assert read_request({"messages": [message], **nothing}) == read_request({"messages": HI})
    for name, rule in HARMLESS.items():
        with pytest.raises(ApiError, match=f"`{name}`"):
            read_request({"messages": HI, name: object()})
        assert rule.only


def test_the_reference_names_every_field() -> None:
    text = (ROOT / "docs" / "serving-api.md").read_text(encoding="utf-8")
    names = [*ChatRequest.model_fields, *HARMLESS]
    assert [name for name in names if f"`{name}`" not in text] == []


@pytest.mark.parametrize(
    "kind", ["", "text/plain", "application/x-www-form-urlencoded", "application/json; charset=latin-1", "text/json"]
)
def test_only_json_is_read(kind: str, app: App) -> None:
    """A page of another server can send the other types here without the browser asking."""
    body = json.dumps({"messages": HI}).encode()
    [response] = post(app, (body, {"content-type": kind} if kind else {}))
    assert response.status_code == 415
    error_of(response)
    kinds = ("application/json", "Application/JSON; charset=UTF-8")
    assert [r.status_code for r in post(app, *((body, {"content-type": kind}) for kind in kinds))] == [200, 200]
    [response] = post(app, (body, {**JSON, "content-encoding": "gzip"}))
    assert response.status_code == 415


def test_malformed_requests_are_never_the_servers_fault(app: App) -> None:
    made = malformed_requests(NUM_MALFORMED, seed=0, host="localhost")
    bodies = [request.data.partition(b"\r\n\r\n")[2] for request in made if request.kind in KINDS_OF_BODIES]
    responses = post(app, *((body, JSON) for body in bodies))
    statuses = [response.status_code for response in responses]
    assert set(statuses) <= {200, 400, 404, 413}
    assert statuses.count(400) > len(bodies) / 2 > 250
    for response in responses:
        if response.status_code != 200:
            error_of(response)


def test_a_bug_is_a_500_without_its_text(capsys: pytest.CaptureFixture[str]) -> None:
    """The control of the test before: what fails inside is seen, and is not told to the client."""
    engine = ScriptedEngine(script=lambda ids, settings: 1 / 0)  # type: ignore[arg-type, return-value]
    app = make_app(engine, [offered()])
    for stream in (False, True):
        [response] = post(app, (json.dumps({"messages": HI, "stream": stream}).encode(), JSON))
        assert response.status_code == 500
        assert "division" not in response.text
        assert "division by zero" in capsys.readouterr().err


def test_routes_that_do_not_exist_have_the_same_shape(app: App) -> None:
    async def ask() -> None:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            for path in ("/v1/completions", "/invocations", "/v1/models/", "/v1/", "/%00", "/health/"):
                response = await client.get(path)
                assert response.status_code == 404, path
                error_of(response)
            for method, path in (("GET", CHAT), ("POST", "/v1/models"), ("DELETE", "/health"), ("OPTIONS", CHAT)):
                response = await client.request(method, path)
                assert response.status_code == 405
                assert response.headers["allow"]
                error_of(response)

    asyncio.run(ask())


@pytest.mark.parametrize("field", ["stream_options", "chat_template_kwargs", "response_format"])
def test_messages_name_no_class_of_the_server(field: str) -> None:
    with pytest.raises(ApiError) as found:
        read_request({"messages": HI, "stream": True, field: ["x"]})
    assert str(found.value) == f"`{field}`: input should be an object"
