"""A server that is asked: conditions reach it or are refused, and what it fails at is never wrong."""

from __future__ import annotations

import email.utils
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.errors import UserError
from ochat_train.cli.main import main
from ochat_train.respondents import url
from ochat_train.respondents.evaluation import EvalOptions, run_eval
from ochat_train.suites.ask import Patience
from ochat_train.suites.results import EvalResults
from tests.support.flaky_server import FlakyServer, Reply, failed, running, said
from tests.support.rows import write_jsonl
from tests.support.scripted_engine import ScriptedEngine, serving

QUESTIONS = [{"question": f"number {n}?", "answer": str(n)} for n in range(4)]
OURS = [{"id": name, "owned_by": "ochat"} for name in ("m", "m@GPT4 Correct", "m@GPT3")]
ALIASES = [{"id": name, "owned_by": "proxy"} for name in ("m", "m@A", "m@B")]
PATIENCE = Patience(num_tries=3, first_wait_seconds=0.0, longest_asked_wait_seconds=0.0, timeout_seconds=20.0)


@pytest.fixture
def questions(tmp_path: Path) -> str:
    path = tmp_path / "held_out.jsonl"
    write_jsonl(path, QUESTIONS)
    return str(path)


def ask(server: str, questions: str, folder: Path, **options: Any) -> EvalResults:
    values = {"suites": ("held-out",), "data": (questions,), "out": folder, "patience": PATIENCE, "num_parallel": 2}
    return run_eval(EvalOptions(target=server, **{**values, **options}), say=lambda text: None).results


def right_answer(body: Mapping[str, Any], number: int) -> Reply:
    return said(" " + body["messages"][-1]["content"].removeprefix("number ").removesuffix("?"))


def test_a_server_without_conditions_is_asked_without_one(questions: str, tmp_path: Path) -> None:
    with running(FlakyServer(reply=right_answer)) as server:
        results = ask(server.url, questions, tmp_path / "out")
        with pytest.raises(UserError, match="has no condition 'GPT3'"):
            ask(server.url, questions, tmp_path / "other", condition="GPT3")
    assert results.conditions == (None,)
    assert results.scores[0].score is not None
    assert results.scores[0].score.mean == 1.0
    body = server.bodies[0]
    assert (body["model"], body["temperature"], "condition" in body) == ("m", 0.0, False)
    assert results.questions[0].texts == ("0",), "without the space that begins every message"


@pytest.mark.parametrize(("models", "sent"), [(OURS, "field"), (ALIASES, "alias")])
def test_conditions_of_a_server(models: Any, sent: str, questions: str, tmp_path: Path) -> None:
    with running(FlakyServer(models=models, reply=right_answer)) as server:
        results = ask(server.url, questions, tmp_path / "out")
        ask(f"{server.url}/v1/chat/completions", questions, tmp_path / "one", condition=models[2]["id"][2:])
    asked = {(body["model"], body.get("condition")) for body in server.bodies}
    expected = {"field": {("m", "GPT4 Correct"), ("m", "GPT3")}, "alias": {("m@A", None), ("m@B", None)}}
    assert asked == expected[sent]
    assert len(server.bodies) == 2 * 4 + 4
    assert len(results.conditions) == 2


def test_failures_are_tried_again_and_counted(questions: str, tmp_path: Path) -> None:
    first = {
        "number 0?": failed(429, retry_after="5"),
        "number 1?": failed(503),
        "number 2?": said(""),
        "number 3?": None,
    }

    def reply(body: Mapping[str, Any], number: int) -> Reply | None:
        return first[body["messages"][-1]["content"]] if number == 1 else right_answer(body, number)

    with running(FlakyServer(reply=reply)) as server:
        results = ask(server.url, questions, tmp_path)
    assert results.num_failed == 0
    assert results.scores[0].score is not None
    assert results.scores[0].score.mean == 1.0
    assert results.failed_tries == {
        "HTTP 429": 1,
        "HTTP 503": 1,
        "no connection to the server": 1,
        "the answer was empty": 1,
    }


@pytest.mark.parametrize(
    ("reply", "reason", "num_tries"),
    [
        (failed(500), "HTTP 500", 3),
        (said(""), "the answer was empty", 3),
        (said(None), "the answer was empty", 3),
        ((200, {}, b"no json"), "the server's reply is not JSON", 3),
        ((200, {}, b"[]"), "the server's reply is not that of OpenAI's API", 3),
        (said(5), "the server's reply is not that of OpenAI's API", 3),
        (failed(400, "bad field"), "HTTP 400: bad field", 1),
        (said("0", finish="content_filter"), "the answer ended with 'content_filter'", 1),
    ],
)
def test_what_has_no_answer_is_failed_and_not_wrong(
    reply: Reply, reason: str, num_tries: int, questions: str, tmp_path: Path
) -> None:
    def answer(body: Mapping[str, Any], number: int) -> Reply:
        return reply if body["messages"][-1]["content"] == "number 2?" else right_answer(body, number)

    with running(FlakyServer(reply=answer)) as server:
        results = ask(server.url, questions, tmp_path)
    [row] = results.scores
    assert (row.num_scored, row.num_failed) == (3, 1)
    assert row.score is not None
    assert row.score.mean == 1.0
    [lost] = [question for question in results.questions if question.status == "failed"]
    assert (lost.reason, lost.failed_tries, lost.value) == (reason, {reason: num_tries}, None)


@pytest.mark.parametrize(("name", "is_refused"), [("m-2", True), ("m-1", False)])
def test_a_server_that_changes_its_model_is_refused(
    name: str, is_refused: bool, questions: str, tmp_path: Path
) -> None:
    def answer(body: Mapping[str, Any], number: int) -> Reply:
        status, headers, data = right_answer(body, number)
        is_late = body["messages"][-1]["content"] == "number 3?"
        return status, headers, json.dumps({**json.loads(data), "model": name if is_late else "m-1"}).encode()

    with running(FlakyServer(reply=answer)) as server:
        if not is_refused:
            assert ask(server.url, questions, tmp_path, num_parallel=1).scores[0].num_scored == 4
            return
        with pytest.raises(UserError, match="answers as 'm-2', and did as 'm-1' before"):
            ask(server.url, questions, tmp_path, num_parallel=1)
    assert len((tmp_path / "answers.jsonl").read_text().splitlines()) == 3, "what it said before is kept"


def test_a_prompt_that_is_too_long_is_not_a_failure(questions: str, tmp_path: Path) -> None:
    def reply(body: Mapping[str, Any], number: int) -> Reply:
        is_long = body["messages"][-1]["content"] == "number 2?"
        if is_long or ("max_tokens" in body and body["messages"][-1]["content"] == "number 1?"):
            return failed(400, "too long", code="context_length_exceeded")
        return right_answer(body, number)

    with running(FlakyServer(models=OURS[:2], reply=reply)) as server:
        results = ask(server.url, questions, tmp_path)
    [row] = results.scores
    assert (row.num_scored, row.num_failed, row.num_too_long) == (3, 0, 1), "a limit that is too high is left out once"


def test_a_server_that_dies_ends_the_command_and_keeps_answers(questions: str, tmp_path: Path) -> None:
    write_jsonl(Path(questions), [{"question": f"number {n}?", "answer": str(n)} for n in range(40)])

    def reply(body: Mapping[str, Any], number: int) -> Reply | None:
        return None if len(server.bodies) > 10 else right_answer(body, number)

    with (
        running(FlakyServer(reply=reply)) as server,
        pytest.raises(UserError, match="in a row, the last time because: no connection"),
    ):
        ask(server.url, questions, tmp_path)
    with running(FlakyServer(reply=right_answer)) as again:
        again_url, server_url = again.url, server.url
        assert again_url != server_url
        results = ask(again_url, questions, tmp_path)
    assert results.num_failed == 0
    assert len(again.bodies) == 40, "another address may be another model"


def test_the_exit_code_says_that_answers_are_missing(
    questions: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def reply(body: Mapping[str, Any], number: int) -> Reply:
        return failed(400) if body["messages"][-1]["content"] == "number 2?" else right_answer(body, number)

    with running(FlakyServer(reply=reply)) as server:
        command = ["eval", server.url, "--suite", "held-out", "--data", questions, "--out", str(tmp_path), "--json"]
        assert main(command) == 78
        document = json.loads(capsys.readouterr().out)
        assert main([*command, "--allow-failed", "1"]) == 0
    assert document["scores"][0]["num_failed"] == 1
    assert "questions" not in document


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (
            ["http://localhost:1", "--max-model-len", "9", "--", "--dtype", "half"],
            "--max-model-len, flags of vLLM: is for",
        ),
        (["http://localhost:1", "--against", "http://localhost:2", "--base", "b"], "--base: is for a model in this"),
        (["export", "--model", "m"], "--model: is for a server"),
    ],
)
def test_what_nobody_takes_is_refused(
    arguments: list[str], problem: str, questions: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The control is an option that one of the two takes."""
    target, *others = arguments
    assert main(["eval", target, "--suite", "held-out", "--data", questions, *others]) == 2
    assert problem in capsys.readouterr().err
    assert (
        main(["eval", "no export", "--suite", "held-out", "--data", questions, "--against", target, "--model", "m"])
        == 2
    )
    assert "is for" not in capsys.readouterr().err


def test_a_key_comes_from_the_environment(
    questions: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    monkeypatch.setenv("OCHAT_API_KEY", "hush")
    with running(FlakyServer(reply=right_answer)) as server:
        ask(server.url, questions, tmp_path)
    assert server.keys == {"Bearer hush"}
    assert not any("hush" in path.read_text() for path in tmp_path.iterdir() if path.is_file())
    with running(FlakyServer(reply=lambda body, number: failed(401))) as server:
        with pytest.raises(UserError, match="HTTP 401: the key is not valid; set OCHAT_API_KEY"):
            ask(server.url, questions, tmp_path / "other")
        assert len(server.bodies) <= 2, "nothing else is asked with it"


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("http://", "is not the address of a server"),
        ("http://me:secret@localhost:1", "set its key in OCHAT_API_KEY"),
        ("http://localhost:1?key=secret", "set its key in OCHAT_API_KEY"),
    ],
)
def test_addresses_that_are_refused(address: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        url.base_of_url(address)
    assert "secret" not in str(caught.value)


def test_one_of_several_models_is_named(questions: str, tmp_path: Path) -> None:
    models = [{"id": "a"}, {"id": "b"}]
    with running(FlakyServer(models=models, reply=right_answer)) as server:
        with pytest.raises(UserError, match=r"has 2 models \(a, b\); choose one with --model"):
            ask(server.url, questions, tmp_path)
        with pytest.raises(UserError, match="has no model c"):
            ask(server.url, questions, tmp_path, model="c")
        assert ask(server.url, questions, tmp_path, model="b").model.name == "b"
    with pytest.raises(UserError, match="cannot be reached"):
        ask(server.url, questions, tmp_path)


def test_how_long_a_server_wants_to_be_left_alone() -> None:
    now = time.time()
    date = email.utils.formatdate(now + 60, usegmt=True)
    assert url._retry_after({"retry-after": "7"}, now=now) == 7.0
    assert url._retry_after({"retry-after": date}, now=now) == pytest.approx(60, abs=1.5)
    odd = ("soon", "\u00b2", "\u0664", "Mon, 01 Jan 0001 00:00:00 -0000", "")
    assert [url._retry_after(headers, now=now) for headers in ({}, *({"retry-after": each} for each in odd))] == [
        *[None] * 4,
        pytest.approx(0.0),
        None,
    ]


def test_our_own_server_is_asked_under_each_condition(questions: str, tmp_path: Path) -> None:
    """Nothing said is an answer there: the engine is asked by ids, and its end of turn is known."""
    engine = ScriptedEngine(script=lambda ids, settings: [" 2"] if len(engine.asked) % 2 else [])
    with serving(engine) as ours:
        results = ask(ours.url, questions, tmp_path, num_parallel=1)
    assert results.engine == "ochat serve"
    assert results.conditions == ("GPT4 Correct", "GPT3")
    assert results.num_failed == 0
    assert [row.empty for row in results.scores] == [0.5, 0.5]
    prompts = [ids for ids, _ in engine.asked]
    assert len(prompts) == 8
    assert prompts[0] != prompts[4], "the condition is in the prompt"


def test_a_proxy_of_the_environment_is_not_asked_for_this_machine(
    questions: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody is at the proxy's address. The control is a server elsewhere; there the stand-in is the proxy."""
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    with running(FlakyServer(reply=right_answer)) as server:
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
        assert ask(server.url, questions, tmp_path / "out").scores[0].score is not None
        monkeypatch.setenv("http_proxy", server.url)
        ask("http://server.example:80", questions, tmp_path / "other")
    assert len(server.bodies) == 2 * len(QUESTIONS)
