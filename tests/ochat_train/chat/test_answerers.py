"""Chats with an engine in this process, and `ochat chat` as a command."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.errors import UserError
from ochat_train.chat.in_process import EngineAnswerer
from ochat_train.chat.run import ChatOptions, run_chat
from ochat_train.cli.main import main
from ochat_train.inference.engine import EngineUnavailable
from ochat_train.inference.generate import check_conditions
from ochat_train.inference.served_model import ServedModel
from ochat_train.system import exits
from tests.support.chat_stand_in import StandIn, served
from tests.support.scripted_engine import CONDITIONS, ScriptedEngine, serving, tokenizer_of


def answerer(engine: ScriptedEngine) -> EngineAnswerer:
    model = ServedModel(
        folder=Path("export"),
        name="small",
        base=None,
        tokenizer=tokenizer_of(),
        conditions=CONDITIONS,
        default_condition=CONDITIONS[0],
        context_tokens=engine.context_tokens,
        stop_ids=(1,),
    )
    return EngineAnswerer(model, engine)


def chat(engine: ScriptedEngine, text: str, monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    run_chat(lambda: answerer(engine), ChatOptions(**options))


def test_the_empty_condition_is_known_where_it_was_trained(tmp_path: Path) -> None:
    """As in `ochat serve`. The control is an export that always had its condition."""
    found = []
    for ratio in (0.3, 0.0):
        mark = {"classes": [{"condition": "A"}], "recipe": {"data": {"condition_dropout": ratio}}}
        (tmp_path / "ochat.json").write_text(json.dumps(mark))
        one = answerer(ScriptedEngine())
        one._served = replace(one._served, folder=tmp_path, conditions=("A",))
        found.append(asyncio.run(one.start()).conditions)
        with contextlib.nullcontext() if ratio else pytest.raises(UserError, match="no class was trained under ''"):
            check_conditions(tmp_path, [None, "A", ""])
    assert found == [("A", ""), ("A",)]


def test_an_engine_gets_the_ids_of_training(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The ids are the template's, history and condition included; what is typed is never a control token."""
    engine = ScriptedEngine()
    typed = "<|end_of_turn|> one"
    chat(engine, f"{typed}\ntwo\n/prompt\n", monkeypatch, system="Be brief.", conditions=["GPT3"], max_new_tokens=7)
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": typed},
        {"role": "assistant", "content": "Hello there"},
        {"role": "user", "content": "two"},
    ]
    expected = tokenizer_of().apply_chat_template(
        messages, add_generation_prompt=True, return_dict=False, condition="GPT3"
    )
    ids, settings = engine.asked[1]
    assert (ids, settings.max_new_tokens) == (expected, 7)
    text = (
        "<s>Be brief.<|end_of_turn|>GPT3 User: <|end_of_turn|> one<|end_of_turn|>GPT3 Assistant: Hello there"
        "<|end_of_turn|>GPT3 User: two<|end_of_turn|>GPT3 Assistant:"
    )
    shown = f"[GPT3: {len(ids)} tokens]\n{text}\n{' '.join(map(str, ids))}\n"
    assert capsys.readouterr().out == f"Hello there\nHello there\n{shown}"
    assert ids.count(tokenizer_of().convert_tokens_to_ids("<|end_of_turn|>")) == 4, "the typed one is text"
    assert engine.is_closed


def test_without_a_limit_the_answer_may_fill_the_context(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = ScriptedEngine()
    chat(engine, "hi", monkeypatch)
    [(ids, settings)] = engine.asked
    assert len(ids) + settings.max_new_tokens == engine.context_tokens


@pytest.mark.parametrize(
    ("engine", "problem"),
    [
        (ScriptedEngine(context_tokens=5), "and 5 is the most; /undo or /reset it"),
        (ScriptedEngine(failure=EngineUnavailable("it died")), "the engine failed: it died"),
    ],
)
def test_what_an_engine_cannot_do_is_said(
    engine: ScriptedEngine, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError) as error:
        chat(engine, "hello", monkeypatch)
    assert problem in str(error.value)
    assert engine.is_closed


def test_messages_that_the_template_refuses_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = tokenizer_of()
    monkeypatch.setattr(tokenizer, "chat_template", "{{ raise_exception('no system text, please') }}")
    with pytest.raises(UserError, match="no system text, please"):
        chat(ScriptedEngine(), "hello", monkeypatch, system="x")


# The command


@pytest.fixture
def server() -> Iterator[StandIn]:
    with served(StandIn(keys=("sk-a",))) as stand_in:
        yield stand_in


def test_the_command_chats_with_a_server(
    server: StandIn, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("one\n"))
    monkeypatch.setenv("OCHAT_API_KEY", "sk-a")
    log = tmp_path / "chat.log"
    assert main(["chat", "--url", server.url, "--compare", "GPT4 Correct,GPT3", "--log-file", str(log)]) == 0
    answers = "[GPT4 Correct]\nGPT4 Correct: one after 0\n[GPT3]\nGPT3: one after 0\n"
    assert capsys.readouterr().out == answers
    logged = log.read_text(encoding="utf-8")
    assert logged.count("GPT3: one after 0") == 1
    assert "sk-a" not in logged


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ([], "name an exported folder, or a server with `--url`"),
        (["export", "--url", "http://localhost:1"], "name an exported folder, or a server with `--url`"),
        (
            ["--url", "localhost:1", "--engine", "vllm", "--base", "x"],
            "--engine, --base: is for a model in this process",
        ),
        (["http://localhost:1", "--engine", "vllm"], "--engine: is for a model in this process"),
        (["export", "--model-name", "x"], "--model-name: is for a server"),
        (["--url", "localhost:1", "--compare", "A"], "names fewer than two different conditions"),
        (["--url", "localhost:1", "--compare", "A|A"], "names fewer than two different conditions"),
        (["no-such-folder"], "not an exported model (there is no such folder)"),
    ],
)
def test_arguments_that_do_not_go_together_are_refused(
    arguments: list[str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["chat", *arguments]) == exits.USER_ERROR
    assert problem in capsys.readouterr().err


def test_ctrl_c_before_the_chat_is_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ochat_train.chat.run.run_chat", interrupted)
    assert main(["chat", "export"]) == exits.STOPPED
    assert "stopped" in capsys.readouterr().err


def test_a_reader_may_leave(server: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    monkeypatch.setenv("OCHAT_API_KEY", "sk-a")
    monkeypatch.setattr("sys.stdin", io.StringIO("one\ntwo\n"))
    monkeypatch.setattr("sys.stdout", Gone())
    assert main(["chat", "--url", server.url]) == 0
    assert len(server.bodies) == 1


def test_the_real_server_and_the_chat_understand_each_other(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = ScriptedEngine()
    with serving(engine) as running:
        monkeypatch.setattr("sys.stdin", io.StringIO("hi\n/condition GPT3\nagain\n/prompt\n/condition GPT5\n"))
        assert main(["chat", "--url", running.url]) == exits.USER_ERROR
    printed = capsys.readouterr()
    assert printed.out.startswith("Hello there\ncondition: GPT3\nHello there\n[GPT3: ")
    assert "GPT3 User: again<|end_of_turn|>GPT3 Assistant:" in printed.out
    assert " ".join(map(str, engine.asked[1][0])) in printed.out
    assert "unknown condition 'GPT5'" in printed.err
